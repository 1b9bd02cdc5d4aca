-- Reserves credit for the worst case of one request.
-- ARGV: time, account, key, request, model, prompt, completion, price of 1,000 input, cached and output tokens, lease
-- in us, plan, its monthly credits ('' when not metered), most at once, requests and tokens a minute ('' for no limit).
-- Answers: ok, completion, bound, amount, when each rate is worn off, the time | a code, and what is told of it.
-- Parts: calendar meter posting credit

local name = ARGV[2] .. ':' .. ARGV[4]
local hold_at, account_at, key_at = SLOT .. 'hold:' .. name, SLOT .. 'account:' .. ARGV[2], SLOT .. 'key:' .. ARGV[3]
local found = call('MGET', hold_at, account_at, key_at)
if found[1] then
  local $hold = unpack(found[1])
  local same = key == ARGV[3] and model == ARGV[5] and prompt == tonumber(ARGV[6]) and asked == tonumber(ARGV[7])
    and price_in == tonumber(ARGV[8]) and price_cached == tonumber(ARGV[9]) and price_out == tonumber(ARGV[10])
    and asked_plan == ARGV[12]
  if not same then return {'conflict'} end
  return {'ok', granted, bound, amount, held_requests_at, held_tokens_at, NOW_US}
end

local $hold
status, account, key, model, asked_plan, tpm = 'open', ARGV[2], ARGV[3], ARGV[5], ARGV[12], tonumber(ARGV[16]) or ''
prompt, asked, noted = tonumber(ARGV[6]), tonumber(ARGV[7]), 0
price_in, price_cached, price_out = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local monthly, most, rpm = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])

if not found[2] then return {'no account'} end
local $account = unpack(found[2])
if state ~= 'active' then return {'suspended'} end
if plan ~= asked_plan then return {'plan changed'} end
if not found[3] then return {'key revoked'} end
local $key = unpack(found[3])
if key_account ~= account or key_revoked ~= 0 then return {'key revoked'} end
if key_expires ~= 0 and key_expires <= NOW_MS then return {'key expired'} end
if most and running >= most then return {'busy', most} end

held_requests_at, held_tokens_at = requests_at, tokens_at
if rpm then
  held_requests_at = wear(requests_at, rpm, 1)
  local wait = held_requests_at - NOW_US - MINUTE_US
  if wait > 0 then return {'requests', rpm, wait, requests_at, tokens_at, NOW_US} end
end
if tpm ~= '' then
  local wait = tokens_at - NOW_US - MINUTE_US + 1
  if wait > 0 then return {'tokens', tpm, wait, requests_at, tokens_at, NOW_US} end
  held_tokens_at = wear(tokens_at, tpm, prompt)
end

granted, bound = asked, cost_of(price_in, price_cached, price_out, prompt, 0, asked)
local left, by_key = math.huge, false
local $grant
local credit
if monthly then
  -- Nearly always the first grant pays for all of it, and no other one needs to be looked at.
  local steady = NOW_MS < steady_until and (monthly == 0 or (given_plan == plan and NOW_MS < given_until))
  if steady and first ~= '' then
    $grant = unpack(first)
    left = grant_amount - grant_used - grant_held - grant_expired
  end
  if left < bound or not grant_id then
    credit = credit_of(account, given_plan, given_until, first)
    if monthly > 0 then credit.give_month(plan, monthly) end
    left = credit.free()
  end
end
if key_cap ~= '' then
  local of_cap = max(key_cap - key_used - key_held, 0)
  if of_cap < left then left, by_key = of_cap, true end
end
if bound > left then
  local least, thousandths = min(asked, 1), left * 1000 - prompt * price_in
  granted = price_out > 0 and thousandths > 0 and min(floor(thousandths / price_out), asked) or 0
  if thousandths < 0 or granted < least then
    if credit and credit.is_changed() then
      steady_until, given_plan, given_until, first = credit.fold()
      call('SET', account_at, pack($account))
    end
    return {by_key and 'cap' or 'credit', cost_of(price_in, price_cached, price_out, prompt, 0, least), left}
  end
  bound = cost_of(price_in, price_cached, price_out, prompt, 0, granted)
end

amount, shares = monthly and bound or 0, ''
if credit then
  amount, shares = credit.take(amount, 'held')
  steady_until, given_plan, given_until, first = credit.fold()
elseif amount > 0 then
  grant_held, shares = grant_held + amount, pack(grant_id, amount)
  first = pack($grant)
end
held, running, requests_at, tokens_at = held + amount, running + 1, held_requests_at, held_tokens_at
key_held, key_last = key_held + bound, NOW_MS
call('MSET', hold_at, pack($hold), account_at, pack($account), key_at, pack($key))
-- Redis takes thrice as long to write out a number.
call('ZADD', KEYS[1], format('%d', NOW_US + ARGV[11]), name)
return {'ok', granted, bound, amount, requests_at, tokens_at, NOW_US}
