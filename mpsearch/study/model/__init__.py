"""What measured losses teach: a corrected table, and what neighbours share of its errors."""
