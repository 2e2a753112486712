"""Files, processes, costs and progress, which all other packages use."""
