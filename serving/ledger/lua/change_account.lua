-- Changes plan or state of an account; '' leaves one as it is. ARGV: time, account, plan, state.
-- Answers: ok | no account.

local account_at = SLOT .. 'account:' .. ARGV[2]
local known = call('GET', account_at)
if not known then return {'no account'} end
local $account = unpack(known)
if ARGV[3] ~= '' then plan = ARGV[3] end
if ARGV[4] ~= '' then state = ARGV[4] end
call('SET', account_at, pack($account))
return {'ok'}
