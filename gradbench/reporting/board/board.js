const state = { ruleset: page.rulesets[0], family: "", problem: "", device: "", name: "" };
const SHADES = [[1.001, "#2a788e", "best"], [1.25, "#35b779", "to 1.25×"], [1.6, "#90d743", "to 1.6×"], [2.5, "#fde725", "to 2.5×"], [5, "#fdae61", "to 5×"], [Infinity, "#e8743b", "more"]];
const cellOf = new Map(page.cells.map((cell) => [`${cell.ruleset}\n${cell.name}\n${cell.problem}`, cell]));
const cell = (name, problem) => cellOf.get(`${state.ruleset}\n${name}\n${problem}`);
const everyProblem = Object.keys(page.problems), short = (problem) => page.problems[problem];
const verdict = new Map(page.records.map((record) => [record.id, record.verified]));

const placeOf = (row) => (state.problem ? cell(row.name, state.problem) : row.place);

function rows() {
  const fits = (row) => row.ruleset === state.ruleset && (!state.family || row.family === state.family) && (!state.device || row.devices.includes(state.device));
  const rank = (row) => (placeOf(row) ? placeOf(row).rank : Infinity);  // over all there is none where nobody reaches a target
  return page.optimizers.filter((row) => fits(row) && (placeOf(row) || !state.problem)).sort((a, b) => rank(a) - rank(b) || 0);
}

const problems = () => (state.problem ? [state.problem] : everyProblem.filter((problem) => page.cells.some((each) => each.ruleset === state.ruleset && each.problem === problem)));

function ranked(place) {
  if (place.of === 1) return "–";  // there is no rank among one
  return place.rank_low === place.rank_high ? `${place.rank}` : `${place.rank} (${place.rank_low}–${place.rank_high})`;
}

const rankWords = (place) => (place.of === 1 ? "nobody to compare with" : `rank ${ranked(place)} of ${place.of}`);
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

const digits = (value) => Number(value.toPrecision(2)).toString();

// The distance from the best, over all problems or as many as it was run on; a pointer on it shows the 95 %.
function spread(td, place) {
  if (!place) return void (td.textContent = "–");
  td.textContent = digits(place.distance);
  td.title = counted(place.problems, "problem");
  const most = Math.max(...page.optimizers.filter((row) => row.ruleset === state.ruleset).map((row) => (row.place ? row.place.problems : 0)));
  if (!state.problem && place.problems < most) td.append(` on ${place.problems}`);
  if (!state.problem && place.low !== null) td.title += `, 95 %: ${digits(place.low)} to ${digits(place.high)}`;
}

// A name, which may go on in the next line behind the signs that part its words.
function nameIn(parent, name) {
  for (const part of name.split(/(?<=[_[,:/])/)) parent.append(part, document.createElement("wbr"));
}

// Steps over those of the chosen row, seed by seed: the two alone, whatever ranks the others leave them; gaps at the end
// where neither reaches a target.
function beside(td, name) {
  const chosen = placeOf(page.optimizers.find((row) => row.ruleset === state.ruleset && row.name === state.name) || {});
  const of = chosen && chosen.comparisons[name];
  if (!of) return void (td.textContent = name === state.name ? "chosen" : "–");
  const [ratio, low, high, shown, gap] = of;
  element(shown ? "b" : "span", `${digits(ratio)}${gap ? " gap" : ""}`, td);
  if (low !== null) td.append(` (${digits(low)}–${digits(high)})`);
  if (!shown) td.className = "soft";
  td.title = `${gap ? "gaps at the end, as neither reaches a target: " : ""}${shown ? "a difference is shown" : "no difference shown"}`;
}

function matrix() {
  const made = find("matrix");
  made.replaceChildren();
  const head = element("tr", undefined, element("thead", undefined, made));
  for (const [text, title] of [["optimizer"], ["rank", "among all of its ruleset; in brackets 95 %"], ["× best", "geometric mean over problems"], ["× chosen", `steps beside those of ${state.name}, seed by seed (gap: the gaps at the end, where neither reaches a target); in brackets 95 %; bold: a difference is shown`]]) {
    const th = element("th", text, head);
    th.scope = "col";
    if (title) th.title = title;
    if (text === "optimizer") th.className = "name";
  }
  for (const problem of problems()) {
    const th = element("th", undefined, head);
    th.className = "problem";
    th.scope = "col";
    element("span", short(problem), th).title = problem;
  }
  element("th", "verified", head).scope = "col";
  const body = element("tbody", undefined, made);
  for (const row of rows()) {
    const tr = element("tr", undefined, body), place = placeOf(row);
    tr.setAttribute("aria-selected", String(row.name === state.name));
    const name = element("td", undefined, tr), button = element("button", undefined, name);
    nameIn(button, row.name);
    name.className = "name";
    button.title = row.name;
    tr.addEventListener("click", () => choose(row.name));
    element("td", place ? ranked(place) : "–", tr);
    spread(element("td", undefined, tr), place);
    beside(element("td", undefined, tr), row.name);
    for (const problem of problems()) paint(element("td", undefined, tr), cell(row.name, problem));
    const done = row.records.filter((id) => verdict.get(id) && verdict.get(id).holds);
    element("td", done.length === row.records.length ? "✓" : `${done.length} of ${row.records.length}`, tr).title = "records of it that were verified";
  }
}

function paint(td, of) {
  td.className = "cell";
  if (!of) {
    td.classList.add("none");
    td.textContent = "";
    return;
  }
  const where = `${of.name}, ${of.problem}: ${rankWords(of)}, ${of.what} ${number(of.value)}${of.low === null ? "" : ` (95 %: ${number(of.low)} to ${number(of.high)})`}; reached by ${number(100 * of.reached)} % of the seeds`;
  td.title = where;
  if (of.what === "steps to target" && of.reached < 0.5) {
    td.classList.add("no");
    td.textContent = "–";
    return;
  }
  const shade = SHADES.find(([end]) => of.distance <= end);
  td.style.background = shade[1];
  if (shade === SHADES[0]) td.style.color = "#fff";
  td.textContent = of.distance >= 100 ? "≫" : Number(of.distance.toPrecision(2)).toString();
}

function scale() {
  const made = find("scale");
  for (const [, colour, text] of SHADES) {
    const part = element("span", undefined, made), box = element("i", undefined, part);
    box.style.background = colour;
    part.append(text);
  }
  element("span", "–: most seeds do not reach the target", made);
}

const views = {};
async function draw(place, name, datasets, change = (spec) => spec) {
  const spec = { ...structuredClone(page.charts[name]), datasets, config, width: "container", autosize: { type: "fit-x", contains: "padding" } };
  const view = (await vegaEmbed(place, change(spec), options)).view;
  if (views[place.id]) views[place.id].finalize();
  views[place.id] = view;
  view.addEventListener("click", (_, item) => item && item.datum && item.datum.name && choose(item.datum.name));
}

const front = (row) => ({ ...row, front: row.name === state.name });

async function across() {
  const seen = new Set(rows().map((row) => row.name)), shown = (row) => row.ruleset === state.ruleset && seen.has(row.name);
  const wide = page.profile.filter(shown), end = Math.max(...wide.map((row) => row.ratio)) * 1.2;
  const last = [...new Map(wide.map((row) => [row.name, row])).values()].map((row) => ({ ...row, ratio: end }));
  await draw(find("profile"), "profile", { profile: [...wide, ...last].map(front) });
  const about = state.problem || null, tuned = page.tuning.filter((row) => shown(row) && row.problem === about && (about || row.what === "steps to target"));
  find("tuning-panel").hidden = !tuned.length;
  find("tuning-of").textContent = about ? short(about) : "over all problems";
  const title = tuned.length && tuned[0].what;
  if (tuned.length) await draw(find("tuning"), "tuning", { tuning: tuned.map(front) }, (spec) => {
    for (const { encoding } of spec.layer) if (encoding.y.title) encoding.y.title = title;
    return spec;
  });
  await time(shown);
}

async function time(shown) {
  const timed = page.cells.filter((of) => shown(of) && of.step_s && (!state.device || of.device === state.device));
  find("time-panel").hidden = !timed.length;
  if (!timed.length) return;
  const rows = state.problem ? timed.filter((of) => of.problem === state.problem).map((of) => ({ ...of, value: of.step_s * 1e6, said: duration(of.step_s) })) : overall(timed);
  find("time-of").textContent = state.problem ? `A trial's step of ${short(state.problem)}, all trials together.` : "A trial's step, all trials together, over that of the cheapest optimizer on the same problem and device: the median over problems.";
  await draw(find("time"), "time", { time: rows.map(({ name, device, value, said }) => front({ name, device, value, said })) }, (spec) => {
    spec.encoding.x.title = state.problem ? "µs" : "× the cheapest";
    return spec;
  });
}

function overall(timed) {
  const least = new Map(), groups = new Map();
  for (const of of timed) {
    const key = `${of.problem}\n${of.device}`;
    least.set(key, Math.min(least.get(key) || Infinity, of.step_s));
  }
  for (const of of timed) {
    const key = `${of.name}\n${of.device}`, found = groups.get(key) || { name: of.name, device: of.device, ratios: [] };
    found.ratios.push(of.step_s / least.get(`${of.problem}\n${of.device}`));
    groups.set(key, found);
  }
  return [...groups.values()].map(({ name, device, ratios }) => {
    const value = ratios.sort((a, b) => a - b)[Math.floor(ratios.length / 2)];
    return { name, device, value, said: `${number(value)}× the cheapest` };
  });
}

async function sweeps() {
  const row = rows().find((each) => each.name === state.name), made = find("sweeps");
  find("chosen").textContent = state.name;
  for (const id of Object.keys(views).filter((id) => id.startsWith("sweep-"))) {
    views[id].finalize();
    delete views[id];
  }
  made.replaceChildren();
  if (!row) return;
  const place = row.place;
  find("said").textContent = place ? `${place.of === 1 ? "Nobody to compare with" : `Rank ${place.rank} of ${place.of} over ${counted(place.problems, "problem")} (95 %: ${place.rank_low} to ${place.rank_high}); ${number(place.distance)}× the best's steps`}; target reached by ${number(100 * place.reached)} % of the seeds; on ${row.devices.join(" and ")}.` : "";
  for (const [at, problem] of problems().entries()) {
    const of = cell(row.name, problem);
    if (!of) continue;
    const panel = element("div", undefined, made);
    panel.className = "panel";
    element("h4", problem, panel);
    element("p", said(of), panel).className = "soft";
    if (of.sweep.rates.length > 1) {
      const reached = of.what === "steps to target" && of.sweep.steps.some((steps) => steps !== null);
      const values = reached ? of.sweep.steps : of.sweep.gaps;
      if (!reached) element("p", "Drawn: the gap at the end.", panel).className = "soft";
      const points = of.sweep.rates.map((rate, i) => ({ rate, value: values[i] > 0 ? values[i] : null, said: values[i] === null ? "not reached" : number(values[i]) }));
      const good = of.good ? [{ low: of.good[0], high: of.good[1] }] : [];
      const chart = element("div", undefined, panel);
      chart.className = "chart";
      chart.id = `sweep-${at}`;
      await draw(chart, "sweep", { sweep: points, good, best: of.learning_rate === null ? [] : [{ rate: of.learning_rate }] });
    }
  }
}

function said(of) {
  const steps = of.what === "steps to target" ? `${of.reached < 1 ? "≥ " : ""}${number(of.value)} steps` : `gap ${number(of.value)} at the end`;
  const parts = [rankWords(of), steps];
  if (of.learning_rate !== null) parts.push(`best rate ${number(of.learning_rate)}`);
  if (of.good) parts.push(`good for ${number(of.good_decades)} decades`);
  if (of.holdout !== null) parts.push(`held-out loss ${number(of.holdout)}`);
  if (of.step_s !== null) parts.push(`${duration(of.step_s)} a step`);
  return parts.join("; ");
}

function records() {
  const made = find("records"), head = element("tr", undefined, element("thead", undefined, made));
  for (const text of ["record", "device", "machine", "trials", "versions", "verified"]) element("th", text, head).scope = "col";
  const body = element("tbody", undefined, made);
  for (const record of page.records) {
    const tr = element("tr", undefined, body), of = record.verified;
    for (const text of [`${record.folder}/${record.id}`, record.device, record.machine, record.trials.toLocaleString("en"), record.versions]) element("td", text, tr);
    const what = of && (of.holds ? `✓ ${of.exact} bit for bit, ${of.within} within the bound` : `✗ does not hold: ${of.differ} trials differ, ${of.faults} faults`);
    element("td", of ? `${what}; by ${of.by}, ${of.at.slice(0, 10)}, on ${of.device_kind}` : "not yet", tr);
  }
}

async function choose(name) {
  state.name = name;
  matrix();
  markCut();
  await sweeps();
  await across();
}

async function filter(change) {
  Object.assign(state, change);
  const seen = rows();
  await choose(seen.some((row) => row.name === state.name) ? state.name : seen.length ? seen[0].name : "");
}

async function start() {
  const choices = { ruleset: page.rulesets, family: new Set(page.optimizers.map((row) => row.family)), problem: everyProblem, device: new Set(page.records.map((record) => record.device)) };
  for (const [id, values] of Object.entries(choices)) {
    for (const value of values) element("option", id === "problem" ? short(value) : value, find(id)).value = value;
    find(id).addEventListener("change", (event) => filter({ [id]: event.target.value }));
  }
  find("what").textContent = `${page.suite === "none" ? "Records of no suite" : `Suite ${page.suite}`}: ${counted(page.optimizers.length, "optimizer")}, ${counted(everyProblem.length, "problem")}, ${counted(page.records.length, "record")}.`;
  scale();
  records();
  addEventListener("resize", markCut);
  await filter({});
  document.body.dataset.ready = "yes";
}
start();
