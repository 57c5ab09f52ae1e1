"""A local web page on which a person moves sliders and sees the plan change: `headway serve`."""
