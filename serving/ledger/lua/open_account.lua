-- Makes an account. ARGV: time, account, plan. Answers: ok | conflict.

local account_at = SLOT .. 'account:' .. ARGV[2]
local known = call('GET', account_at)
local $account
if known then
  $account = unpack(known)
  return {plan == ARGV[3] and 'ok' or 'conflict'}
end
plan, state, created, used, held, running, requests_at, tokens_at = ARGV[3], 'active', NOW_MS, 0, 0, 0, 0, 0
steady_until, given_plan, given_until, first = NEVER, '', 0, ''
call('SET', account_at, pack($account))
call('SADD', SLOT .. 'accounts', ARGV[2])
return {'ok'}
