"use strict";
// The choice between the gap of the training loss and a recorded metric, which the charts show in its place.

// How the metric that is shown is drawn; null where it is the gap.
const measure = () => (state.by ? page.measures[page.pairs[state.pair].problem][state.by] : null);

// A layer's encoding, for a metric in the place of the gap: as charts.py draws it in a file.
function measured(name, spec, { y, tooltip = [] }, by, scale) {
  for (const row of tooltip) if (["final_said", "gap"].includes(row.field)) row.title = state.by;
  if (y && y.value !== undefined && by.more_is_better) y.value = spec.height - y.value;  // what diverged
  if (!y || y.field !== "gap") return;
  const final = name === "sensitivity", log = by.log && scale === "log";
  y.title = `${state.by}${final ? " at the end" : ""}${by.more_is_better ? ", more is better" : ""}`;
  y.scale = { type: log ? "log" : "linear", zero: log ? undefined : false, ...(final ? {} : { domain: by.range, clamp: true }) };
  if (!log) y.axis = { tickCount: 6 };
}

// A pair with the metric that is shown in the place of its gap, as data.by_metric makes it.
function shown(pair) {
  if (!state.by) return pair;
  const metric = pair.metrics && pair.metrics[state.by];
  if (!metric) return { ...pair, rates: [], curves: [] };
  const rates = pair.rates.map((rate, i) => {
    const [gap, low, high] = metric.values[i] || [null, null, null];
    return { ...rate, gap, low, high, final: gap, best: i === metric.best, predicted: null };
  });
  return { ...pair, rates, curves: pair.curves.map((curve, i) => ({ ...curve, gaps: metric.curves[i] })), grid: pair.metric_grid };
}

// A metric where the problem has it, else "", the gap.
const known = (problem, by) => (by && page.measures[problem] && page.measures[problem][by] ? by : "");

// The problem's metrics to choose from, and which of them is shown.
function metrics(by) {
  const { problem } = page.pairs[state.pair], select = find("by"), names = Object.keys(page.measures[problem] || {});
  select.replaceChildren(new Option("training loss gap", ""), ...names.map((name) => new Option(name)));
  select.parentElement.hidden = !names.length;
  select.value = state.by = known(problem, by);
  find("scale").disabled = state.by !== "" && !measure().log;
}
