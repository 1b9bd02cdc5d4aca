-- An account as it stands. ARGV: time, account, plan and its monthly credits ('' when not metered, or unknown).
-- Answers: ok, plan, state, created, used, held, running, then a row for each of its live grants in order: id, amount,
-- used, held, expired, priority, effective, expiry, kind, and what of it can be used | no account.
-- Parts: calendar posting credit

local account_at = SLOT .. 'account:' .. ARGV[2]
local known = call('GET', account_at)
if not known then return {'no account'} end
local $account = unpack(known)
local credit = credit_of(ARGV[2], given_plan, given_until, first)
local monthly = ARGV[3] == plan and tonumber(ARGV[4]) or 0
if monthly > 0 then credit.give_month(plan, monthly) end
local answer = {'ok', plan, state, created, used, held, running}
for _, grant in ipairs(credit.grants) do
  if credit.free_of(grant) > 0 or grant.held > 0 then
    answer[#answer + 1] = {
      grant.id, grant.amount, grant.used, grant.held, grant.expired, grant.priority, grant.effective, grant.expires,
      grant.kind, credit.usable(grant),
    }
  end
end
if credit.is_changed() then
  steady_until, given_plan, given_until, first = credit.fold()
  call('SET', account_at, pack($account))
end
return answer
