"""DRY, "don't repeat yourself": what would prolong a repetition is less likely, the more so the longer that is."""
