"""Pictures of records. Reads records, never models; records never draw themselves."""
