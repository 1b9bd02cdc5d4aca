-- Days since 1970 <-> civil dates. Source: H. Hinnant, "chrono-compatible low-level date algorithms", 2021.
-- One function, since few calls need it. Returns two: year, month, day of days; days of year, month.
local function calendar()
  local function civil(days)
    local shifted = days + 719468
    local era = floor(shifted / 146097)
    local day_of_era = shifted - era * 146097
    local leaps = floor(day_of_era / 1460) - floor(day_of_era / 36524) + floor(day_of_era / 146096)
    local year_of_era = floor((day_of_era - leaps) / 365)
    local day_of_year = day_of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
    local month_index = floor((5 * day_of_year + 2) / 153)
    local month = month_index < 10 and month_index + 3 or month_index - 9
    local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
    return year, month, day_of_year - floor((153 * month_index + 2) / 5) + 1
  end

  local function days_of(year, month)
    if month <= 2 then year = year - 1 end
    local era = floor(year / 400)
    local year_of_era = year - era * 400
    local day_of_year = floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
    return era * 146097 + year_of_era * 365 + floor(year_of_era / 4) - floor(year_of_era / 100) + day_of_year - 719468
  end

  return civil, days_of
end

