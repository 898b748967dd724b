"use strict";
// The settings that were tried beside the learning rate; the other views are of the pair's best values of them.
async function drawSettings() {
  const pair = page.pairs[state.pair];
  find("settings-panel").hidden = !pair.map;
  if (!pair.map) return;
  find("settings-name").textContent = `${pair.problem}, ${pairName(pair)}`;
  find("settings-note").textContent = `Colours are bands of the final gap, their edges its contours; hatched, most seeds diverge; dashed, the best learning rate at each value; ringed, the best. The other views are of ${pair.at}.`;
  const spec = { ...structuredClone(pair.map), config };
  if (spec.facet) {  // which has no width of its own to fit
    const room = find("settings").clientWidth;
    spec.columns = room > 520 ? 2 : 1;
    spec.spec.width = Math.max(120, room / spec.columns - 90);
  } else {
    Object.assign(spec, { width: "container", autosize: { type: "fit-x", contains: "padding" } });
  }
  const made = await vegaEmbed(find("settings"), spec, options);
  if (views.settings) views.settings.finalize();
  views.settings = made.view;
  made.view.addEventListener("click", (_, item) => {
    const rate = item && item.datum && item.datum.learning_rate;
    if (rate && index(pair.rates, rate) >= 0) choose(state.pair, index(pair.rates, rate));
  });
}
