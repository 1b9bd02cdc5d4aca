-- Gives credit. ARGV: time, account, id, amount, kind, priority, effective and expiry in ms (0 for never).
-- Answers: ok, what of it is used, held and expired, and its expiry | no account | conflict.
-- Parts: calendar posting credit

local id, account_at, acts = ARGV[3], SLOT .. 'account:' .. ARGV[2], SLOT .. 'acts:' .. ARGV[2]
local known = call('GET', account_at)
if not known then return {'no account'} end
local payload = table.concat(ARGV, '|', 4, 8)
local act = call('HGET', acts, 'grant:' .. id)
if act and act ~= payload then return {'conflict'} end
local $account = unpack(known)
local credit = credit_of(ARGV[2], given_plan, given_until, first)
local grant = credit.find(id)
local is_other = grant and not act
if not grant then
  grant = {
    id = id, amount = tonumber(ARGV[4]), used = 0, held = 0, expired = 0, kind = ARGV[5], priority = tonumber(ARGV[6]),
    effective = tonumber(ARGV[7]), expires = tonumber(ARGV[8]),
  }
  call('HSET', acts, 'grant:' .. id, payload)
  credit.give(grant)
end
steady_until, given_plan, given_until, first = credit.fold()
call('SET', account_at, pack($account))
if is_other then return {'conflict'} end
return {'ok', grant.used, grant.held, grant.expired, grant.expires}
