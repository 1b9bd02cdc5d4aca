-- The live grants of an account, those with credit free or held, for steps that are not sure to touch the first one
-- alone. The first one is in the account's record and is written there again, with the fields before it, as `fold`
-- returns them; all others are one value, one behind the other, so that a hold need not carry them.
local function credit_of(of_account, given_plan, given_until, first)
  local PAST, OTHERS = SLOT .. 'past:' .. of_account, SLOT .. 'grants:' .. of_account
  local others = call('GET', OTHERS) or ''
  local grants, by_id, changed = {}, {}, false

  local function add(grant)
    grants[#grants + 1], by_id[grant.id] = grant, grant
    return grant
  end

  -- One at a time, since a call returns no more than some thousand values. Returns the last one.
  local function read(text)
    local at, grant = text == '' and -1 or 0, nil
    while at ~= -1 do
      local $grant
      at, $grant = cmsgpack.unpack_limit(text, 9, at)
      grant = add({
        id = grant_id, amount = grant_amount, used = grant_used, held = grant_held, expired = grant_expired,
        priority = grant_priority, effective = grant_effective, expires = grant_expires, kind = grant_kind,
      })
    end
    return grant
  end

  local function read_shares(text)
    local shares, at = {}, text == '' and -1 or 0
    while at ~= -1 do
      local id, amount
      at, id, amount = cmsgpack.unpack_limit(text, 2, at)
      shares[#shares + 1] = {id = id, amount = amount}
    end
    return shares
  end

  local function write(grant)
    return pack(
      grant.id, grant.amount, grant.used, grant.held, grant.expired, grant.priority, grant.effective, grant.expires,
      grant.kind
    )
  end

  local function free_of(grant) return grant.amount - grant.used - grant.held - grant.expired end

  local function is_over(grant) return grant.expires ~= 0 and grant.expires <= NOW_MS end

  local function usable(grant)
    return grant.effective <= NOW_MS and not is_over(grant) and free_of(grant) or 0
  end

  -- What is free of a grant that is over expires.
  local function expire(grant)
    local gone = free_of(grant)
    if gone > 0 and is_over(grant) then
      grant.expired = grant.expired + gone
      post(of_account, 'expire', -gone, grant.id)
      changed = true
    end
  end

  local function consumed_before(one, other)
    if one.priority ~= other.priority then return one.priority < other.priority end
    if one.expires ~= other.expires then
      return other.expires == 0 or (one.expires ~= 0 and one.expires < other.expires)
    end
    return one.id < other.id
  end

  local function find(id)
    if by_id[id] then return by_id[id] end
    local past = call('HGET', PAST, id)
    if not past then return nil end
    local grant = read(past)
    grant.past = true
    return grant
  end

  local function give(grant)
    changed = true
    post(of_account, 'grant', grant.amount, grant.id)
    expire(grant)
    add(grant)
    table.sort(grants, consumed_before)
  end

  -- A metered plan's grant for this month, unless it was given.
  local function give_month(plan, monthly)
    local civil, days_of = calendar()
    local year, month = civil(floor(NOW_MS / DAY_MS))
    local id = format('plan:%04d-%02d:%s', year, month, plan)
    local ends = days_of(year + floor(month / 12), month % 12 + 1) * DAY_MS
    if not find(id) then
      give({
        id = id, amount = monthly, used = 0, held = 0, expired = 0, priority = 10, kind = 'plan',
        effective = days_of(year, month) * DAY_MS, expires = ends,
      })
    end
    given_plan, given_until = plan, ends
  end

  -- Adds up to `amount` to `field` of the grants that can be used, in order. Returns what was taken and from which.
  local function take(amount, field)
    local left, shares = amount, {}
    for _, grant in ipairs(grants) do
      local share = min(usable(grant), left)
      if share > 0 then
        grant[field] = grant[field] + share
        shares[#shares + 1] = pack(grant.id, share)
        left = left - share
      end
    end
    return amount - left, table.concat(shares)
  end

  -- Turns what is held into what is used, the first shares first. Returns what was used of which grants.
  local function consume(shares, cost)
    local spent = {}
    for _, share in ipairs(read_shares(shares)) do
      local grant, used = find(share.id), min(share.amount, cost)
      grant.held, grant.used, cost = grant.held - share.amount, grant.used + used, cost - used
      expire(grant)
      if used > 0 then spent[#spent + 1] = pack(grant.id, used) end
    end
    return table.concat(spent)
  end

  -- Puts `back` microcredits of what was used back into the grants they came from, the last one first.
  local function give_back(shares, back)
    local used = read_shares(shares)
    for at = #used, 1, -1 do
      local share = min(used[at].amount, back)
      if share > 0 then
        local grant = find(used[at].id)
        grant.used, back = grant.used - share, back - share
        expire(grant)
      end
    end
  end

  -- Writes those that are spent to the past, and all but the first. Returns the account's fields from `steady_until` on.
  local function fold()
    local steady_until, next_one, rest = NEVER, nil, {}
    table.sort(grants, consumed_before)
    for _, grant in ipairs(grants) do
      if grant.held == 0 and free_of(grant) == 0 then
        call('HSET', PAST, grant.id, write(grant))
      else
        if grant.past then call('HDEL', PAST, grant.id) end
        if grant.effective > NOW_MS then steady_until = min(steady_until, grant.effective) end
        if grant.expires > NOW_MS then steady_until = min(steady_until, grant.expires) end
        if next_one or usable(grant) == 0 then rest[#rest + 1] = write(grant) else next_one = write(grant) end
      end
    end
    rest = table.concat(rest)
    if rest ~= others then call('SET', OTHERS, rest) end
    return steady_until, given_plan, given_until, next_one or ''
  end

  read(first)
  read(others)
  table.sort(grants, consumed_before)
  for _, grant in ipairs(grants) do expire(grant) end

  return {
    grants = grants, is_changed = function() return changed end, usable = usable, find = find, give = give,
    give_month = give_month, is_over = is_over, free_of = free_of, take = take, consume = consume,
    give_back = give_back, fold = fold,
    free = function()
      local free = 0
      for _, grant in ipairs(grants) do free = free + usable(grant) end
      return free
    end,
  }
end

