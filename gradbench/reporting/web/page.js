const state = { pair: 0, rate: 0, scale: "log", time: "steps", by: "" };
const views = {};
const severalRuns = page.runs.length > 1;
const pairName = (pair) => (severalRuns ? `${pair.optimizer} (${pair.run})` : pair.optimizer);

// A copy of a chart with its data in, as wide as its place, and its y axis log or linear.
function filled(name, datasets, scale) {
  const spec = { ...structuredClone(page.charts[name]), datasets, config, width: "container", autosize: { type: "fit-x", contains: "padding" } };
  const by = name === "sensitivity" || name.startsWith("convergence") ? measure() : null;
  for (const { encoding = {} } of spec.layer || [spec]) {
    const y = encoding.y;
    if (by) measured(name, spec, encoding, by, scale);
    else if (y && y.field === "gap") {
      y.title = `${name === "sensitivity" ? "final " : ""}gap to ${page.pairs[state.pair].gap_to} / first gap`;
      if (scale === "linear") Object.assign(y, { scale: { type: "linear", domain: [0, 1.2], clamp: true }, axis: { tickCount: 6 } });
    }
  }
  return spec;
}

async function draw(place, name, datasets, scale, change = (spec) => spec) {
  const made = await vegaEmbed(find(place), change(filled(name, datasets, scale)), options);
  if (views[place]) views[place].finalize();
  views[place] = made.view;
  return made.view;
}

function pairsOfProblem() {
  const problem = page.pairs[state.pair].problem;
  return page.pairs.filter((pair) => pair.problem === problem);
}

function frontCurves() {
  const pair = shown(page.pairs[state.pair]);
  const unit = state.time === "seconds" && pair.step_s ? pair.step_s : 1;
  const rows = { curves: [], front: [], ends: [], theory: [] };
  pair.curves.forEach((curve, trial) => {
    const chosen = curve.rate === state.rate;
    if (curve.seed > 0 && !chosen) return;
    const fixed = { trial, learning_rate: pair.rates[curve.rate].learning_rate, seed: curve.seed, verdict: curve.verdict };
    const points = curve.gaps.map((gap, i) => ({ ...fixed, x: pair.grid[i] * unit, gap })).filter((row) => row.gap !== null);
    rows.curves.push(...points);
    if (chosen) rows.front.push(...points);
    if (chosen && curve.seed === 0) rows.theory = predictedRows(pair.rates[state.rate].predicted, points, unit);
    if (curve.verdict === "diverged" && points.length) rows.ends.push(points[points.length - 1]);
  });
  return rows;
}

// The gap that falls at the predicted rate and ends where the curve does, over the curve's last three quarters.
function predictedRows(rate, points, unit) {
  if (rate === null || !points.length) return [];
  const last = points[points.length - 1], gaps = points.map((point) => point.gap);
  return Array.from({ length: 41 }, (_, k) => last.x * (0.25 + (0.75 * k) / 40))
    .map((x) => ({ x, gap: last.gap * Math.exp(((x - last.x) / unit) * Math.log(Math.max(rate, 1e-9))) }))
    .filter((row) => row.gap >= Math.min(...gaps) && row.gap <= Math.max(...gaps));
}

const near = (a, b) => Math.abs(Math.log(a / b)) < 1e-6;
const index = (rates, rate) => rates.findIndex((row) => near(row.learning_rate, rate));

// The landscape's paths: of the chosen optimizer, those of representative rates and the chosen rate's, or the nearest.
function pathRows() {
  const pair = page.pairs[state.pair], view = page.landscapes[pair.problem], rate = pair.rates[state.rate].learning_rate;
  const mine = view.paths.filter((path) => path.optimizer === pair.optimizer);
  const away = (path) => Math.abs(Math.log(path.learning_rate / rate));
  const front = mine.reduce((best, path) => (best === null || away(path) < away(best) ? path : best), null);
  const label = (path) => `${number(path.learning_rate)} ${path.word}`.trim();
  const points = (path) => path.x.map((x, i) => ({ x, y: path.y[i], step: view.steps[i], loss: path.loss[i], label: label(path), learning_rate: path.learning_rate }));
  const representative = mine.filter((path) => path.word);
  let note = "No path of this optimizer is drawn: it is not one of gradbench's own.";
  if (front) {
    const which = near(front.learning_rate, rate) ? "this learning rate" : `${number(front.learning_rate)}, the nearest that is drawn,`;
    note = `Black: the path of ${which} from seed 0${front.left ? ", which leaves the picture" : ""}. Darker is lower; arrows point downhill; the square is the start. Shown: ${view.spec.title.subtitle}.`;
  }
  return { representative, label, note, datasets: { paths: representative.flatMap(points), front: front ? points(front) : [] } };
}

async function drawLandscape() {
  const pair = page.pairs[state.pair], view = page.landscapes[pair.problem];
  find("landscape-name").textContent = `${pair.problem}, ${pairName(pair)}`;
  find("landscape").hidden = !view.spec;
  if (!view.spec) {
    find("landscape-note").textContent = `No landscape: ${view.missing}.`;
    return;
  }
  const { representative, label, note, datasets } = pathRows();
  const spec = { ...structuredClone(view.spec), title: undefined, width: "container", autosize: { type: "fit-x", contains: "padding" }, config };
  Object.assign(spec.datasets, datasets);
  const scale = { domain: representative.map(label), range: representative.map((path) => path.colour) };
  const walk = (layer) => {
    const colour = layer.encoding && layer.encoding.color;
    if (colour && colour.field === "label") colour.scale = scale;
    (layer.layer || []).forEach(walk);
  };
  walk(spec);
  const made = await vegaEmbed(find("landscape"), spec, options);
  if (views.landscape) views.landscape.finalize();
  views.landscape = made.view;
  made.view.addEventListener("click", (_, item) => {
    const rate = item && item.datum && item.datum.learning_rate;
    if (rate && index(pair.rates, rate) >= 0) choose(state.pair, index(pair.rates, rate));
  });
  find("landscape-note").textContent = note;
}

async function drawValleys() {
  const pair = page.pairs[state.pair];
  const ends = page.landscapes[pair.problem].ends.filter((row) => row.optimizer === pair.optimizer);
  find("valleys-panel").hidden = !ends.length;
  if (!ends.length) return;
  const view = await draw("valleys", "valleys", { ends, chosen: chosenRows() });
  view.addEventListener("click", (_, item) => {
    if (item && item.datum && item.datum.valley) choose(state.pair, index(pair.rates, item.datum.learning_rate));
  });
}

async function drawSharpness() {
  const pair = page.pairs[state.pair];
  const rows = page.sharpness.filter((row) => ["run", "problem", "optimizer"].every((key) => row[key] === pair[key]));
  find("sharpness-panel").hidden = !rows.length;
  const ends = [pair.rates[0], pair.rates[pair.rates.length - 1]].map((rate) => rate.learning_rate);
  const sameColours = (spec) => { for (const layer of spec.layer) layer.encoding.color.scale.domain = ends; return spec; };  // as convergence's
  if (rows.length) await draw("sharpness", "sharpness", { sharpness: rows }, state.scale, sameColours);
}

async function drawPair() {
  for (const each of [drawSettings, drawConvergence, drawLandscape, drawValleys, drawSharpness]) await each();
}

async function drawConvergence() {
  const { epoch } = page.pairs[state.pair], seconds = state.time === "seconds";
  const inEpochs = (spec) => { for (const { encoding } of spec.layer) encoding.x.title = `step (an epoch is ${epoch} steps)`; return spec; };
  await draw("convergence", seconds ? "convergence_seconds" : "convergence", frontCurves(), state.scale, epoch && !seconds ? inEpochs : undefined);
}

async function drawSensitivity() {
  const rates = pairsOfProblem().flatMap((pair) => shown(pair).rates.map((rate, index) => ({ ...rate, index, run: pair.run, optimizer: pair.optimizer, pair: page.pairs.indexOf(pair) })));
  const view = await draw("sensitivity", "sensitivity", { rates, ...chosenInSensitivity() }, state.scale);
  view.addEventListener("click", (_, item) => {
    if (item && item.datum && item.datum.index !== undefined) choose(item.datum.pair, item.datum.index);
  });
}

// The chosen learning rate, and its optimizer's good range and stable limit, where that is on the axis.
function chosenInSensitivity() {
  const pair = page.pairs[state.pair], { optimizer, good, limit, limit_is } = pair;
  const largest = Math.max(...pairsOfProblem().flatMap((each) => each.rates.map((rate) => rate.learning_rate)));
  return {
    chosen: chosenRows(),
    good: good ? [{ optimizer, low: good[0], high: good[1] }] : [],
    limits: limit !== null && limit <= largest ? [{ optimizer, limit, label: `${limit_is}: ${number(limit)}`, level: 0 }] : [],
  };
}

function chosenRows() {
  return [{ learning_rate: page.pairs[state.pair].rates[state.rate].learning_rate }];
}

function describe() {
  const pair = page.pairs[state.pair], rate = pair.rates[state.rate];
  const detail = find("detail");
  detail.replaceChildren();
  element("span", `${pair.problem}, ${pairName(pair)}, learning rate ${number(rate.learning_rate)}: `, detail);
  element("span", rate.verdicts, detail).className = "verdict";
  const gap = rate.gap === null ? "" : `; final gap ${number(rate.final)} of the first, to ${pair.gap_to} (median of seeds)`;
  const steps = rate.steps === null ? "; the target is not reached by most seeds" : `; target reached in ${number(rate.steps)} steps${pair.epoch ? ` (${number(rate.steps / pair.epoch)} epochs)` : ""}${rate.seconds === null ? "" : `, ${duration(rate.seconds)}`}`;
  const when = pair.curves.filter((curve) => curve.rate === state.rate && curve.diverged_at !== null).map((curve) => curve.diverged_at);
  const blown = when.length ? `; diverges at step ${Math.min(...when)}` : "";
  const limit = pair.limit === null ? "" : `; ${pair.limit_is}: ${number(pair.limit)}`;
  const factor = (x) => `×${Number(x.toPrecision(5))}`;
  const fall = rate.predicted === null ? "" : `; theory: the gap goes ${factor(rate.predicted)} a step in the end (dashed)${rate.fitted === null ? "" : `, fitted here ${factor(rate.fitted)}`}`;
  const metric = state.by && shown(pair).rates[state.rate];
  const by = metric ? `; ${state.by} ${number(metric.gap)} at the end` : "";
  element("span", `${gap}${by}${rate.gap === null ? "" : steps}${blown}${limit}${fall}.`, detail);
  find("rate-name").textContent = number(rate.learning_rate);
  find("rate").max = pair.rates.length - 1;
  find("rate").value = state.rate;
  find("rate").setAttribute("aria-valuetext", `${number(rate.learning_rate)}, ${rate.verdicts}`);
  find("problem-name").textContent = pair.problem;
  find("by-name").textContent = state.by ? `${state.by} at the end` : "final gap";
  const said = pair.metrics && (pair.metrics[state.by] || pair.metrics["holdout.loss"]);
  find("by-said").textContent = said ? `${pairName(pair)}: ${said.said}` : "";
  find("by-said").hidden = !said;
  const left = pair.all_rates - pair.rates.length;
  find("pair-name").textContent = `${pair.problem}, ${pairName(pair)}` + (left > 0 ? ` (${pair.rates.length} of ${pair.all_rates} learning rates drawn)` : "");
  for (const row of find("rates").querySelectorAll("tr[data-rate]")) {
    const chosen = Number(row.dataset.rate) === state.rate, place = find("rates-box");
    row.setAttribute("aria-selected", String(chosen));
    if (chosen && !row.contains(document.activeElement)) place.scrollTop = row.offsetTop - place.clientHeight / 2;  // the page stays
  }
}

function table() {
  const pair = page.pairs[state.pair], made = find("rates");
  made.replaceChildren();
  const head = element("tr", undefined, element("thead", undefined, made));
  const metric = state.by ? shown(pair).rates : [];
  for (const name of ["learning rate", "verdict", ...(metric.length ? [state.by] : []), "steps to target", "time to target", "final gap", "lowest", "highest"]) {
    const made = element("th", name, head);
    made.scope = "col";
    if (name === "verdict") made.className = "word";
  }
  const body = element("tbody", undefined, made);
  pair.rates.forEach((rate, index) => {
    const row = element("tr", undefined, body);
    row.dataset.rate = index;
    const button = element("button", number(rate.learning_rate) + (rate.best ? " best" : ""), element("td", undefined, row));
    button.addEventListener("click", () => choose(state.pair, index));
    element("td", rate.verdicts, row).className = "word";
    if (metric.length) element("td", number(metric[index].gap) + (metric[index].best ? " best" : ""), row);
    for (const value of [number(rate.steps), duration(rate.seconds), number(rate.final), number(rate.lowest), number(rate.highest)]) element("td", value, row);
  });
}

// The one way the chosen trial changes: every view follows from here, and the address. `keep` is how the history takes
// it: "pushState" for a step to go back to, "replaceState" for one that is not, null where the history itself asks.
async function choose(pairIndex, rateIndex, keep = "pushState") {
  const before = page.pairs[state.pair], pair = page.pairs[pairIndex];
  Object.assign(state, { pair: pairIndex, rate: rateIndex });
  remember(keep);
  if (pair !== before) {
    find("problem").value = pair.problem;
    optimizers();
    metrics(state.by);
    table();
    markCut();
  }
  describe();
  if (pair.problem !== before.problem) await drawSensitivity();
  else await renewed(views.sensitivity, chosenInSensitivity());
  if (pair !== before) return drawPair();
  await renewed(views.convergence, frontCurves());
  if (page.landscapes[pair.problem].spec) {
    const { note, datasets } = pathRows();
    find("landscape-note").textContent = note;
    await renewed(views.landscape, { front: datasets.front });
  }
  if (!find("valleys-panel").hidden) await renewed(views.valleys, { chosen: chosenRows() });
}

async function renewed(view, datasets) {
  for (const [name, rows] of Object.entries(datasets)) view.data(name, rows);
  await view.runAsync();
}

// What is chosen, as the address has it after its #.
function address() {
  const pair = page.pairs[state.pair], run = severalRuns ? { run: pair.run } : {};
  const lr = pair.rates[state.rate].learning_rate;
  const by = page.measures[pair.problem] ? { by: state.by } : {};
  return `#${new URLSearchParams({ problem: pair.problem, optimizer: pair.optimizer, ...run, lr, loss: state.scale, time: state.time, ...by })}`;
}

function remember(keep) {
  if (keep && location.hash !== address()) history[keep](null, "", address());
}

// The state that the address asks for: what it leaves out, or what is not here, is the best.
function asked() {
  const words = new URLSearchParams(location.hash.slice(1));
  const fits = (pair) => ["problem", "optimizer", "run"].every((key) => !words.has(key) || pair[key] === words.get(key));
  const found = page.pairs.filter(fits), of = (found[0] || page.pairs[0]).problem;
  const pair = found.find((each) => each.winner) || found[0] || page.pairs[winner(of)];
  const away = (rate) => Math.abs(Math.log(rate.learning_rate / Number(words.get("lr"))));
  const nearest = pair.rates.reduce((best, rate, i) => (away(rate) < away(pair.rates[best]) ? i : best), 0);
  return {
    pair: page.pairs.indexOf(pair),
    rate: found.length && Number(words.get("lr")) > 0 ? nearest : bestIndex(pair),
    scale: words.get("loss") === "linear" ? "linear" : "log",
    time: words.get("time") === "seconds" ? "seconds" : "steps",
    by: known(pair.problem, words.has("by") ? words.get("by") : page.by),
  };
}

const winner = (problem) => page.pairs.findIndex((pair) => pair.problem === problem && pair.winner);

function bestIndex(pair) {
  return Math.max(0, pair.rates.findIndex((rate) => rate.best));
}

function optimizers() {
  const select = find("optimizer");
  select.replaceChildren();
  for (const pair of pairsOfProblem()) {
    const option = element("option", pairName(pair), select);
    option.value = page.pairs.indexOf(pair);
    option.selected = page.pairs.indexOf(pair) === state.pair;
  }
}

async function axes(change) {
  const { scale, by } = state;
  Object.assign(state, change);
  find("scale").value = state.scale;
  find("time").value = state.time;
  if (state.by !== by) {
    metrics(state.by);
    table();
    describe();
    markCut();
  }
  if (state.scale !== scale || state.by !== by) await drawSensitivity();
  await drawConvergence();
}

function listen() {
  const rate = (pair) => bestIndex(page.pairs[pair]);
  find("problem").addEventListener("change", (event) => choose(winner(event.target.value), rate(winner(event.target.value))));
  find("optimizer").addEventListener("change", (event) => choose(Number(event.target.value), rate(Number(event.target.value))));
  find("rate").addEventListener("input", (event) => choose(state.pair, Number(event.target.value), "replaceState"));
  for (const name of ["scale", "time", "by"]) {
    find(name).addEventListener("change", (event) => { axes({ [name]: event.target.value }); remember("pushState"); });
  }
  addEventListener("popstate", async () => {
    const { pair, rate: to, scale, time, by } = asked();
    await choose(pair, to, null);
    if (scale !== state.scale || time !== state.time || by !== state.by) await axes({ scale, time, by });
  });
  addEventListener("resize", markCut);
  for (const part of document.querySelectorAll("details")) part.addEventListener("toggle", markCut);
}

async function start() {
  for (const problem of new Set(page.pairs.map((pair) => pair.problem))) element("option", problem, find("problem"));
  Object.assign(state, asked());
  find("problem").value = page.pairs[state.pair].problem;
  find("scale").value = state.scale;
  find("time").value = state.time;
  find("time").options[1].disabled = !page.pairs.some((pair) => pair.step_s);
  optimizers();
  metrics(state.by);
  table();
  describe();
  listen();
  markCut();
  await drawSensitivity();
  await drawPair();
  const what = (row) => [row.problem, row.optimizer, severalRuns ? row.run : null].filter(Boolean).join(", ");
  if (page.timings.length) await draw("timing", "step_cost", { timings: page.timings.map((row) => ({ ...row, what: what(row) })) });
  for (const name of ["profile", "profile_seconds", "ecdf", "ecdf_seconds"]) {
    find(name).parentElement.hidden = !page.overall[name];
    if (page.overall[name]) await draw(name, name, { [name]: page.overall[name] });
  }
  document.body.dataset.ready = "yes";
}
start();
