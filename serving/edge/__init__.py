"""What every HTTP front has in common: reading bodies, headers and descriptions of answers, mistakes of ours."""
