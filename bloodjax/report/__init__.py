"""Reports: tables, pictures and pages of runs and of studies."""
