"""What a run and the command that shows it on the screen agree on."""

# path of a file to which the run writes what it is, as JSON (see maskgrpo_plugin.run_facts); set: a screen is watching
FACTS_VARIABLE = "MASKGRPO_RUN_FACTS"
# beginnings of lines of the run's output that are for the screen
WARNING_MARK = "maskgrpo:warning: "
PHASE_MARK = "maskgrpo:phase: "
