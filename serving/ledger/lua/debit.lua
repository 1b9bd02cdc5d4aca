-- Takes credit that is free. ARGV: time, account, id, amount.
-- Answers: ok, free credit left | no account | conflict | credit, free credit.
-- Parts: calendar posting credit

local id, amount, account_at = ARGV[3], tonumber(ARGV[4]), SLOT .. 'account:' .. ARGV[2]
local known = call('GET', account_at)
if not known then return {'no account'} end
local acts = SLOT .. 'acts:' .. ARGV[2]
local act = call('HGET', acts, 'debit:' .. id)
if act then
  local before, left = string.match(act, '^(%d+):(%d+)$')
  if tonumber(before) ~= amount then return {'conflict'} end
  return {'ok', left}
end
local $account = unpack(known)
local credit = credit_of(ARGV[2], given_plan, given_until, first)
local free = credit.free()
if free >= amount then
  credit.take(amount, 'used')
  post(ARGV[2], 'debit', -amount, '', id)
  call('HSET', acts, 'debit:' .. id, format('%d:%d', amount, free - amount))
end
steady_until, given_plan, given_until, first = credit.fold()
call('SET', account_at, pack($account))
if free < amount then return {'credit', free} end
return {'ok', free - amount}
