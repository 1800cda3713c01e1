"""Images, charts, pages."""
