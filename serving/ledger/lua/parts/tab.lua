-- What a key uses of one model on one day is added up in its own record, and gets into the day's totals when the day or
-- the model is another one. Returns the tab with so much more on it.
local function put_on_tab(of_account, of_key, tab, model, requests, prompt, cached, completion, cost)
  local today = floor(NOW_MS / DAY_MS)
  if tab ~= '' then
    local $tab = unpack(tab)
    if tab_day == today and tab_model == model then
      return pack(
        today, model, tab_requests + requests, tab_prompt + prompt, tab_cached + cached, tab_completion + completion,
        tab_cost + cost
      )
    end
    local date = format('%04d-%02d-%02d', calendar()(tab_day))
    local day, line = SLOT .. 'day:' .. of_account .. ':' .. date, of_key .. '|' .. tab_model
    local total = call('HGET', day, line)
    if total then
      local r, p, c, o, m = unpack(total)
      tab_requests, tab_prompt, tab_cached = tab_requests + r, tab_prompt + p, tab_cached + c
      tab_completion, tab_cost = tab_completion + o, tab_cost + m
    end
    call('HSET', day, line, pack(tab_requests, tab_prompt, tab_cached, tab_completion, tab_cost))
  end
  return pack(today, model, requests, prompt, cached, completion, cost)
end

