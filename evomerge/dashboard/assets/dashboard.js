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
  },
});

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
