"""From records to shards: ingest, plan, run tasks on an engine, commit the build."""
