-- Gives credit. ARGV: time, account, id, amount, kind, priority, effective and expiry in ms (0 for never).
-- Answers: ok, the grant as it stands | no account | conflict.

local account, id = ARGV[2], ARGV[3]
if redis.call('EXISTS', key_of('account', account)) == 0 then return {'no account'} end
local grant = {
  id = id, amount = tonumber(ARGV[4]), used = 0, held = 0, expired = 0, kind = ARGV[5], priority = tonumber(ARGV[6]),
  effective = tonumber(ARGV[7]), expires = tonumber(ARGV[8]),
}
local payload = table.concat(ARGV, '|', 4, 8)
local acts = key_of('acts', account)
local known = redis.call('HGET', acts, 'grant:' .. id)
if known and known ~= payload then return {'conflict'} end
live_grants(account, '', 0)
local before = find_grant(account, id)
if before and not known then return {'conflict'} end
if before then
  grant = before
else
  redis.call('HSET', acts, 'grant:' .. id, payload)
  give(account, grant)
end
return {'ok', int(grant.used), int(grant.held), int(grant.expired), int(grant.expires)}
