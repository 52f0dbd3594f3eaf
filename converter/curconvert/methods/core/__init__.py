"""The common parts of all methods: their interface, registry, options, planning and tasks."""
