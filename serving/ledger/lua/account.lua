-- An account as it stands. ARGV: time, account, plan and its monthly credits ('' when not metered, or unknown).
-- Answers: ok, plan, state, created, used, held, running, then its live grants in order | no account.

local account = ARGV[2]
local values = redis.call('HMGET', key_of('account', account), 'plan', 'state', 'created', 'used', 'held', 'running')
if not values[1] then return {'no account'} end
local monthly = ARGV[3] == values[1] and tonumber(ARGV[4]) or 0
local answer = {'ok', unpack(values)}
for _, grant in ipairs(live_grants(account, values[1], monthly)) do
  if free_of(grant) > 0 or grant.held > 0 then
    answer[#answer + 1] = grant.id
    answer[#answer + 1] = string.format(
      '%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%s:%.0f', grant.amount, grant.used, grant.held, grant.expired, grant.priority,
      grant.effective, grant.expires, grant.kind, usable(grant)
    )
  end
end
return answer
