"""A package, so that worker processes find it before one of that name which another library installs (draccus does)."""
