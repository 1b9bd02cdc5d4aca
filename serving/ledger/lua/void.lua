-- Takes back what is free of a grant, now and in future. ARGV: time, account, id.
-- Answers: ok, amount | no account | no grant.
-- Parts: calendar posting credit

local id, account_at, acts = ARGV[3], SLOT .. 'account:' .. ARGV[2], SLOT .. 'acts:' .. ARGV[2]
local known = call('GET', account_at)
if not known then return {'no account'} end
local act = call('HGET', acts, 'void:' .. id)
if act then return {'ok', act} end
local $account = unpack(known)
local credit = credit_of(ARGV[2], given_plan, given_until, first)
local grant, gone = credit.find(id), 0
if grant and not credit.is_over(grant) then
  gone = credit.free_of(grant)
  grant.expires, grant.expired = NOW_MS, grant.expired + gone
  post(ARGV[2], 'void', -gone, id)
  call('HSET', acts, 'void:' .. id, gone)
end
steady_until, given_plan, given_until, first = credit.fold()
call('SET', account_at, pack($account))
return grant and {'ok', gone} or {'no grant'}
