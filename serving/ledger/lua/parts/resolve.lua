-- How most holds end: the first grant alone held for it, and is not spent. Returns that grant with so much used of it,
-- and what was used of which grant; nothing when it is not as simple.
local function use_first(first, shares, taken)
  if first == '' then return nil end
  local $grant = unpack(first)
  local at, id, share = cmsgpack.unpack_limit(shares, 2, 0)
  if at ~= -1 or id ~= grant_id then return nil end
  grant_held, grant_used = grant_held - share, grant_used + taken
  if grant_held == 0 and grant_used + grant_expired == grant_amount then return nil end
  return pack($grant), taken > 0 and pack(id, taken) or ''
end

-- Ends a hold as `ending`: settled, released or reaped. One that was reaped before gets a correction, the difference,
-- once; one that is lost is charged as if it had been reaped at nothing; one that was settled or released stays as it
-- is. `found`: the records of the hold and, as far as they are read already, of its account and of `found_key`. Returns
-- the cost, and prompt, cached and completion tokens.
local function resolve(name, found, found_key, ending, reason, prompt_now, cached_now, completion_now)
  local $hold = unpack(found[1])
  if status == 'settled' or status == 'released' then return cost, used_prompt, used_cached, used_completion end
  local account_at, key_at = SLOT .. 'account:' .. account, SLOT .. 'key:' .. key
  local $account = unpack(found[2] or call('GET', account_at))
  local $key = unpack(key == found_key and found[3] or call('GET', key_at))
  local request = string.sub(name, #account + 2)
  local cost_now = min(cost_of(price_in, price_cached, price_out, prompt_now, cached_now, completion_now), bound)

  if status == 'open' then
    local taken = amount > 0 and cost_now or 0
    local first_now, spent
    if NOW_MS < steady_until then
      if shares == '' then first_now, spent = first, '' else first_now, spent = use_first(first, shares, taken) end
    end
    if first_now then
      first, shares = first_now, spent
    else
      local credit = credit_of(account, given_plan, given_until, first)
      shares = credit.consume(shares, taken)
      steady_until, given_plan, given_until, first = credit.fold()
    end
    held, running, key_held = held - amount, running - 1, key_held - bound
    cost, status = cost_now, ending
    if ending ~= 'released' then
      if tpm ~= '' then tokens_at = wear(tokens_at, tpm, completion_now) end
      key_last = NOW_MS
      post(
        account, 'charge', -taken, '', request, key, model, cost, prompt_now, cached_now, completion_now, reason
      )
      tab = put_on_tab(account, key, tab, model, 1, prompt_now, cached_now, completion_now, cost)
    end
    used, key_used = used + cost, key_used + cost
    call('ZREM', KEYS[1], name)
  else
    local difference = cost_now - cost
    local p, c, o = prompt_now - used_prompt, cached_now - used_cached, completion_now - used_completion
    local credit = credit_of(account, given_plan, given_until, first)
    if amount > 0 and difference > 0 then
      difference = credit.take(difference, 'used')
    elseif amount > 0 then
      credit.give_back(shares, -difference)
    end
    steady_until, given_plan, given_until, first = credit.fold()
    local kind, requests = 'correction', 0
    if status == 'lost' then kind, requests, key_last = 'charge', 1, NOW_MS end
    if status == 'lost' or p ~= 0 or c ~= 0 or o ~= 0 then
      local moved = amount > 0 and difference or 0
      post(account, kind, -moved, '', request, key, model, difference, p, c, o, reason)
      tab = put_on_tab(account, key, tab, model, requests, p, c, o, difference)
      used, key_used = used + difference, key_used + difference
    end
    cost, status = cost + difference, 'settled'
  end

  used_prompt, used_cached, used_completion = prompt_now, cached_now, completion_now
  call('MSET', account_at, pack($account), key_at, pack($key))
  call('SET', SLOT .. 'hold:' .. name, pack($hold), 'EX', REMEMBER_S)
  return cost, used_prompt, used_cached, used_completion
end

