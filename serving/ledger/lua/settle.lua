-- Charges what a request used, once. A hold that the store lost (a failover) is charged from what its process knows.
-- ARGV: time, account, request, prompt, cached, completion, reason; then what the hold was: key, model, price of 1,000
-- input, cached and output tokens, bound, amount.
-- Answers: ok | lost, cost, prompt, cached, completion | no account.

local account, request, reason = ARGV[2], ARGV[3], ARGV[7]
local prompt, cached, completion = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local name = account .. ':' .. request
local hold = find_hold(name)
local outcome = 'ok'
if not hold then
  outcome = 'lost'
  if redis.call('EXISTS', key_of('account', account), key_of('key', ARGV[8])) < 2 then return {'no account'} end
  -- As if it had been reaped before anything was generated: the whole of it is the correction.
  redis.call(
    'HSET', key_of('hold', name), 'state', 'reaped', 'payload', '', 'account', account, 'key', ARGV[8],
    'model', ARGV[9], 'in', ARGV[10], 'cached', ARGV[11], 'out', ARGV[12], 'bound', ARGV[13], 'amount', ARGV[14],
    'cost', '0', 'usage', '0:0:0'
  )
  hold = find_hold(name)
end
local cost
if hold.state == 'open' then
  cost = close(hold, prompt, cached, completion, reason, 'settled')
elseif hold.state == 'reaped' then
  cost = correct(hold, prompt, cached, completion, reason)
else
  cost = hold.cost
  prompt, cached, completion = read_usage(hold.usage)
end
return {outcome, int(cost), int(prompt), int(cached), int(completion)}
