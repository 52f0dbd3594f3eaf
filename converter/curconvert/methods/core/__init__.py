"""What methods have in common: their interface, registry, options, planning and tasks."""
