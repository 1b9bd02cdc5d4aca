-- Charges what a request used, once. A hold that the store does not have, since a failover lost it or the store was away
-- when the request began, is charged from what its process knows.
-- ARGV: time, account, request, prompt, cached, completion, reason; then what the hold was: key, model, price of 1,000
-- input, cached and output tokens, bound, amount.
-- Answers: ok | lost, cost, prompt, cached, completion | no account.
-- Parts: calendar meter posting tab credit resolve

local name = ARGV[2] .. ':' .. ARGV[3]
local found = call('MGET', SLOT .. 'hold:' .. name, SLOT .. 'account:' .. ARGV[2], SLOT .. 'key:' .. ARGV[8])
local outcome = 'ok'
if not found[1] then
  outcome = 'lost'
  if not (found[2] and found[3]) then return {'no account'} end
  local $hold
  status, account, key, model = 'lost', ARGV[2], ARGV[8], ARGV[9]
  price_in, price_cached, price_out = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
  bound, amount, shares = tonumber(ARGV[13]), tonumber(ARGV[14]), ''
  cost, used_prompt, used_cached, used_completion = 0, 0, 0, 0
  found[1] = pack($hold)
end
local prompt, cached, completion = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
return {outcome, resolve(name, found, ARGV[8], 'settled', ARGV[7], prompt, cached, completion)}
