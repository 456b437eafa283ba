"""Adapters between the plugin and verl: platform, engines, workers, rollout servers, agent loop."""
