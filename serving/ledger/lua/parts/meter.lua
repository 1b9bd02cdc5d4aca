-- What tokens cost, and when a rate of so many a minute will be worn off after some more uses.

local function cost_of(price_in, price_cached, price_out, prompt, cached, completion)
  return ceil(((prompt - cached) * price_in + cached * price_cached + completion * price_out) / 1000)
end

local function wear(full_at, limit, uses)
  return max(full_at, NOW_US) + floor(uses * MINUTE_US / limit)
end

