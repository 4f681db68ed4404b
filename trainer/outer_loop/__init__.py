"""The eager parts of `run`: intervals, signals, preflight checks, banner, summaries, reports, bad steps.

Here: eager code that runs between two compiled loops. Not here: tensors of a step, and files of a checkpoint.

Used from outside:
    arguments: Arguments, check_all_bindings_used, one_loop, Request, Result
    bad_steps: BadSteps
    banner: show, show_end
    dashboards: (the module)
    folder_lock: (the module)
    intervals: Intervals, Loop
    numerics: numerics_checked
    pace: Pace
    preflight: check_monitors, first_spec, has_ended, reported_tags, warn_of_unused_bindings
    profile: Profile
    progress: Progress
    reporting: Reporter, TIMED
    signals: Signals
    starts: (the module)
    summaries: Summaries
"""
