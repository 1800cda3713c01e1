"""LeRobotDataset v3 on disk: schema, videos, tables, and the store that reads and writes them."""
