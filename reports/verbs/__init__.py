"""The verbs of the command line, one module each, imported when its verb is called."""

VERBS = {
    "catalog": "List known models, accelerators, clusters, fleets and prices.",
    "profile": "Measure this machine: kernels, collectives, copies and disk.",
    "estimate": "Price one given strategy: step time, memory, days, dollars.",
    "fit": "Say whether a run fits, and what would make it fit.",
    "size": "Say which model and how many tokens a budget buys.",
    "plan": "Choose the strategy, how many accelerators, the machine.",
    "simulate": "Replay one step of a plan, or the whole run with failures.",
    "run": "Train for real as a plan says, and compare.",
    "export": "Write a plan for Megatron-LM, torchtitan, Slurm and others.",
    "compare": "Show where the difference between plans or runs lies.",
    "whatif": "Change inputs: sweeps, break-evens, what matters most.",
    "report": "Write one self-contained page.",
    "serve": "Serve a page to plan on, with sliders.",
    "validate": "Predict published measured runs: how far off?",
    "data": "Text to shards that training reads.",
    "quickstart": "Show the whole loop on this machine.",
}
"""Each verb's name and line of help, in the order of the rooms; the module of the same name holds its `app`."""
