-- Changes plan or state of an account; '' leaves one as it is. ARGV: time, account, plan, state.
-- Answers: ok | no account.

local record = key_of('account', ARGV[2])
if redis.call('EXISTS', record) == 0 then return {'no account'} end
if ARGV[3] ~= '' then redis.call('HSET', record, 'plan', ARGV[3]) end
if ARGV[4] ~= '' then redis.call('HSET', record, 'state', ARGV[4]) end
return {'ok'}
