"""What no schema says of the file formats: what each is for, who writes and reads it."""

from __future__ import annotations

TOP = """\
# File formats

<!-- Made by scripts/docs from the schemas that read the files (reports/formats/): change those, not this page. -->

Files that people write are YAML (or JSON, by the ending `.json`): UTF-8, one mapping. A field that is not known is refused, and
so is a value out of its bounds: one line names the file, the field, the value and the mend, and the exit status is 2. In the
tables a field is *needed*, or has the default that is shown; – is nothing. Files that Headway writes are written to a
temporary name and renamed, so they are whole or not there.

Where a model, cluster, accelerator, software or fleet is named, the name is one of the catalogue or a file of one's own:
`headway plan config.json ours.yaml:16 --tokens 1T --software theirs.yaml`.
"""

QUANTITIES = """\
A quantity is a number and its unit, with or without a space. GB is decimal, GiB binary; b is bit, B byte; a bare number is
refused where a unit is needed."""

DIMENSIONS = {
    "bytes": "bytes", "bytes_per_s": "bytes or bits per second", "flop_per_s": "FLOP per second", "s": "time", "w": "power",
    "usd": "money", "usd_per_hour": "money per hour", "count": "a count (tokens)",
}

ABOUT = {
    "Model": """
        MODEL on the command line: a name of the catalogue, a Hugging Face `config.json` of a type that is known (or a YAML
        with its keys), or a file that spells out its layers, in these fields. Fields without a meaning are what their name
        says in such a config.""",
    "Plan": """
        `plan` and `estimate --out` write it; `simulate`, `run`, `fit`, `whatif`, `compare`, `export` and `report` read it.
        People edit `question` and `strategy`; a file of one's own needs no more, and `prediction: {}`. Numbers are SI, and
        their names end in their unit. A page that `report` wrote holds its plan and can stand in its place.""",
    "Cluster": """
        CLUSTER on the command line, with the nodes behind a colon: `dgx-h100:16`, `ours.yaml:8`. `local[:ranks]` is this
        machine, with `--profile FILE`.""",
    "Networks of a cluster": """
        What stands under `network.scale_up` or `network.scale_out` of a cluster: which links ranks share beyond their own
        ports. `kind` says which of these it is; `torus.yaml` and `links.yaml` are whole clusters with one.""",
    "Pool": """
        Unlike clusters as one, wherever a CLUSTER may stand; `dgx-a100:8+dgx-h100:8` is the short form ([pools](pools.md)).""",
    "Accelerator": """
        Named by a cluster's `accelerator`. Figures are those of the data sheet, each with its source.""",
    "Software": """
        `--software NAME` or a file of one's own: what a framework generation does beside the split. Files must state
        framework, year, kernels, attention, source; the rest is as in Headway's own engine where they do not. `precisions`
        maps a precision to the fields that differ under it.""",
    "Fleet": """
        `simulate --run --fleet`, `plan --failures`: how often what breaks, and how long it takes to recover ([the whole
        run](runs.md)).""",
    "Prices": """
        `prices.yaml` and `storage_prices.yaml` of the catalogue, to which rows are added; `--price` on the command line
        states one for a question.""",
    "Profile": """
        `headway profile` writes it, `--profile` reads it: a YAML head in lines that begin with `#`, then CSV.""",
    "Data profile": "`headway data bench` writes it, `simulate --data` reads it ([data](data.md)).",
    "Shards": """
        `headway data prepare` writes a folder, `run --data` reads it: `index.json` and the shards that it names.
        `fingerprint` is the SHA-256 of all else in the index.""",
    "Schedule": """
        `--schedule FILE` of `simulate` and `run`: a CSV with a line for each pipeline rank and a cell for each turn, in
        torch's grammar. `2F0` is stage 2, forward, micro-batch 0; `B` a whole backward, `I` and `W` its halves (gradients of
        inputs, of weights); `(0F5;7B1)OVERLAP_F_B` a forward and a backward as one; an empty cell an idle turn. Every forward
        needs its backward, and nothing may wait for itself.""",
    "Run folder": """
        `headway run --out FOLDER` writes it; `compare`, `report` and `run --resume` read it. `run.json` is written last: a
        folder without one is no finished run.""",
    "Checkpoint": """
        `checkpoints/step-N/manifest.json` of a run folder, beside the files of torch's distributed checkpoint. `fingerprint`
        is the SHA-256 of all else in it; a folder without a valid manifest is no checkpoint.""",
}
"""Title of a format -> what it is for; line breaks are spaces."""

FOLDER = {
    "run.json": "what was asked and what was measured, below",
    "timeline.csv": "who did what when, a row an action",
    "journal.jsonl": "a line of JSON for each step and each event, over all restarts",
    "job.json": "what the ranks were told",
    "worker.log": "what the ranks printed",
    "checkpoints/step-N/": "checkpoints, the last ones that `--keep` says",
    "alive/, launcher.lock": "signs of life of the ranks, while it runs",
}
"""Files of a run folder."""

ELSEWHERE = {
    "published runs (CSV) of `validate`": "[validate.md](validate.md#columns)",
    "what `export` writes": "[exports.md](exports.md)",
    "traces that `compare` and `simulate --trace` read and write": "[compare.md](compare.md), [simulate.md](simulate.md)",
    "`efficiency/`, `calibration/`, `scaling_laws.yaml`, `power.yaml`, `grid.yaml`, `storage.yaml` of the catalogue":
        "fitted and published numbers, no files of one's own: [theory.md](theory.md) says what they are",
}
"""Files whose form another page tells."""

KEYS = "What each verb prints with `--json`: [every key, verb by verb](json.md)."
