-- Makes an account. ARGV: time, account, plan. Answers: ok | conflict.

local record = key_of('account', ARGV[2])
local plan = redis.call('HGET', record, 'plan')
if plan then return {plan == ARGV[3] and 'ok' or 'conflict'} end
redis.call(
  'HSET', record, 'plan', ARGV[3], 'state', 'active', 'created', int(NOW_MS), 'used', '0', 'held', '0', 'running', '0'
)
redis.call('SADD', TAG .. ':accounts', ARGV[2])
return {'ok'}
