-- Reserves credit for the worst case of one request.
-- ARGV: time, account, key, request, model, prompt, completion, price of 1,000 input, cached and output tokens, lease
-- in us, plan, its monthly credits ('' when not metered), most at once, requests and tokens a minute ('' for no limit).
-- Answers: ok, completion, bound, amount, when each rate is worn off, the time | a code, and what is told of it.

local _, account, key, request, model = unpack(ARGV, 1, 5)
local prompt, completion = tonumber(ARGV[6]), tonumber(ARGV[7])
local price_in, price_cached, price_out = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local lease_us, plan = tonumber(ARGV[11]), ARGV[12]
local monthly, most, rpm, tpm = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
local least = min(completion, 1)

local name = account .. ':' .. request
local record = key_of('hold', name)
local payload = table.concat(ARGV, '|', 2, 10) .. '|' .. plan
local known = redis.call('HMGET', record, 'payload', 'granted', 'bound', 'amount', 'rq', 'tk')
if known[1] then
  if known[1] ~= payload then return {'conflict'} end
  return {'ok', known[2], known[3], known[4], known[5], known[6], int(NOW_US)}
end

local account_key, key_key = key_of('account', account), key_of('key', key)
local of_account = redis.call('HMGET', account_key, 'state', 'plan', 'held', 'running', REQUESTS, TOKENS)
if not of_account[1] then return {'no account'} end
if of_account[1] ~= 'active' then return {'suspended'} end
if of_account[2] ~= plan then return {'plan changed'} end
local of_key = redis.call('HMGET', key_key, 'account', 'cap', 'used', 'held', 'expires', 'revoked')
if of_key[1] ~= account or number_or(of_key[6], 0) ~= 0 then return {'key revoked'} end
local key_expires = number_or(of_key[5], 0)
if key_expires ~= 0 and key_expires <= NOW_MS then return {'key expired'} end
local running = tonumber(of_account[4])
if most and running >= most then return {'busy', int(most)} end

local changes = {'running', int(running + 1)}
local requests_at, tokens_at = number_or(of_account[5], 0), number_or(of_account[6], 0)
if rpm then
  local worn = wear(requests_at, rpm, 1)
  if worn > NOW_US + MINUTE_US then
    return {'requests', int(rpm), int(worn - NOW_US - MINUTE_US), int(requests_at), int(tokens_at), int(NOW_US)}
  end
  requests_at = worn
  changes[#changes + 1] = REQUESTS
  changes[#changes + 1] = int(worn)
end
if tpm then
  if tokens_at >= NOW_US + MINUTE_US then
    local wait = tokens_at - NOW_US - MINUTE_US + 1
    return {'tokens', int(tpm), int(wait), int(number_or(of_account[5], 0)), int(tokens_at), int(NOW_US)}
  end
  tokens_at = wear(tokens_at, tpm, prompt)
  changes[#changes + 1] = TOKENS
  changes[#changes + 1] = int(tokens_at)
end

local left, by_key, grants = nil, false, nil
if monthly then
  grants, left = live_grants(account, plan, monthly), 0
  for _, grant in ipairs(grants) do left = left + usable(grant) end
end
local cap = number_or(of_key[2], nil)
if cap then
  local of_cap = max(cap - of_key[3] - of_key[4], 0)
  if not left or of_cap < left then left, by_key = of_cap, true end
end
local bound = cost_of(price_in, price_cached, price_out, prompt, 0, completion)
if left and bound > left then
  local thousandths = left * 1000 - prompt * price_in
  completion = price_out > 0 and thousandths > 0 and min(floor(thousandths / price_out), completion) or 0
  if thousandths < 0 or completion < least then
    local needed = cost_of(price_in, price_cached, price_out, prompt, 0, least)
    return {by_key and 'cap' or 'credit', int(needed), int(left)}
  end
  bound = cost_of(price_in, price_cached, price_out, prompt, 0, completion)
end
local amount, parts = 0, ''
if monthly then
  amount = bound
  _, parts = take(account, grants, bound, 'held')
  changes[#changes + 1] = 'held'
  changes[#changes + 1] = int(of_account[3] + amount)
end
redis.call('HSET', account_key, unpack(changes))
redis.call('HSET', key_key, 'held', int(of_key[4] + bound), 'last', int(NOW_MS))
redis.call(
  'HSET', record, 'state', 'open', 'payload', payload, 'account', account, 'key', key, 'model', model, 'in', ARGV[8],
  'cached', ARGV[9], 'out', ARGV[10], 'granted', int(completion), 'bound', int(bound), 'amount', int(amount),
  'parts', parts, 'prompt', ARGV[6], 'noted', '0', 'tpm', ARGV[16], 'rq', int(requests_at), 'tk', int(tokens_at)
)
redis.call('ZADD', KEYS[1], int(NOW_US + lease_us), name)
return {'ok', int(completion), int(bound), int(amount), int(requests_at), int(tokens_at), int(NOW_US)}
