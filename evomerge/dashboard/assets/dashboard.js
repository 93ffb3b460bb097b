"use strict";
/* What the browser does alone: light or dark, copying, and saying when the server is gone. */
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  evomerge: {
    // The stored choice, else what the system prefers; a click changes it.
    theme: (clicks, stored) => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      const now = stored === "dark" || stored === "light" ? stored : system;
      const next = clicks ? (now === "dark" ? "light" : "dark") : now;
      document.documentElement.dataset.theme = next;
      return [next, next === "dark" ? "Light" : "Dark", matchMedia("(max-width: 760px)").matches];
    },
    // The version of which the front is drawn: what lies below it waits for that.
    settled: (_figure, version, settled) =>
      version === settled ? window.dash_clientside.no_update : version,
  },
});

// The library that draws is large: it is loaded while the server makes the page of a search, or while one looks at the
// list. Dash loads it only when there is a figure, unless something stands in its place; then it waits for that.
{
  const load = () => {
    window.Plotly ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = "/_dash-component-suites/plotly/package_data/plotly.min.js";
      script.onload = resolve;
      script.onerror = reject;
      document.head.append(script);
    });
  };
  if (location.pathname.startsWith("/search/")) { load(); } else { setTimeout(load, 1000); }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy-button");
  if (!button) { return; }
  const text = button.previousElementSibling.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling); // clipboards need https or loopback
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

// Sliders are named by the label around them, which their library does not say to screen readers.
document.addEventListener("focusin", (event) => {
  const label = event.target.getAttribute("role") === "slider" && event.target.closest("label");
  if (label) { event.target.setAttribute("aria-label", label.firstChild.textContent); }
});

(() => {
  const plain = window.fetch;
  const say = (text) => {
    const place = document.getElementById("connection");
    if (place && place.textContent !== text) { place.textContent = text; }
  };
  window.fetch = async (...request) => {
    try {
      const answer = await plain(...request);
      say(answer.status === 401 ? "The token is no longer valid: open the printed address again." : "");
      return answer;
    } catch (error) {
      say("The dashboard does not answer; what you see may be old.");
      throw error;
    }
  };
})();
