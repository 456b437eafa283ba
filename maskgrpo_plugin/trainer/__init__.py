"""The registered trainer, its advantage estimators and policy losses."""
