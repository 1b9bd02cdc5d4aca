-- Takes credit that is free. ARGV: time, account, id, amount.
-- Answers: ok, free credit left | no account | conflict | credit, free credit.

local account, id, amount = ARGV[2], ARGV[3], tonumber(ARGV[4])
local plan = redis.call('HGET', key_of('account', account), 'plan')
if not plan then return {'no account'} end
local acts = key_of('acts', account)
local known = redis.call('HGET', acts, 'debit:' .. id)
if known then
  local before, left = string.match(known, '^(%d+):(%d+)$')
  if tonumber(before) ~= amount then return {'conflict'} end
  return {'ok', left}
end
local grants, free = live_grants(account, plan, 0), 0
for _, grant in ipairs(grants) do free = free + usable(grant) end
if free < amount then return {'credit', int(free)} end
take(account, grants, amount, 'used')
post(account, 'debit', -amount, 'request', id)
redis.call('HSET', acts, 'debit:' .. id, int(amount) .. ':' .. int(free - amount))
return {'ok', int(free - amount)}
