-- Takes back what is free of a grant, now and in future. ARGV: time, account, id.
-- Answers: ok, amount | no account | no grant.

local account, id = ARGV[2], ARGV[3]
if redis.call('EXISTS', key_of('account', account)) == 0 then return {'no account'} end
local acts = key_of('acts', account)
local known = redis.call('HGET', acts, 'void:' .. id)
if known then return {'ok', known} end
live_grants(account, '', 0)
local grant = find_grant(account, id)
if not grant then return {'no grant'} end
if is_over(grant) then return {'ok', '0'} end
local gone = free_of(grant)
grant.expires, grant.expired = NOW_MS, grant.expired + gone
post(account, 'void', -gone, 'grant', id)
write_grant(account, grant)
redis.call('HSET', acts, 'void:' .. id, int(gone))
return {'ok', int(gone)}
