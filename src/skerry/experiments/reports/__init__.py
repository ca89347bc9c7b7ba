"""Reports: tables, pages and pictures from run folders alone."""
