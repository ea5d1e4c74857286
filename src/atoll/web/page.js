// What the page does in the browser: language, what is kept over a reload, keys, a lost server.
// Nothing leaves the browser here but what Gradio sends to this very server.
const atoll = (() => {
  const read = (store, name, otherwise) => {
    try {
      return JSON.parse(store.getItem("atoll." + name)) ?? otherwise;
    } catch {
      return otherwise;
    }
  };
  const write = (store, name, value) => {
    try {
      store.setItem("atoll." + name, JSON.stringify(value));
    } catch {} // full, or not allowed: the page works without
  };

  const wanted = navigator.language || "en";
  const language = read(localStorage, "language", wanted.startsWith("zh") ? "zh" : "en");
  // Gradio speaks the browser's language; this is how it hears of another choice.
  const locale = { en: "en", zh: "zh-CN" }[language];
  Object.defineProperty(navigator, "language", { get: () => locale });
  document.documentElement.lang = locale;

  const word = (key) => WORDS[key][language];

  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && innerWidth < WIDE) showSettings(false);
    if (event.key !== "Enter" || !event.target.closest?.("#message")) return;
    // Gradio sends on Shift+Enter too, and in the middle of a word that is being composed.
    if (event.shiftKey || event.isComposing || event.keyCode === 229) event.stopImmediatePropagation();
  }, true);

  const WIDE = 900; // pixels from which the settings have room beside the conversation
  const showSettings = (shown) => {
    document.body.classList.toggle("settings", shown);
    document.querySelector("#open-settings")?.setAttribute("aria-expanded", shown);
  };

  addEventListener("pagehide", () => {
    write(sessionStorage, "draft", document.querySelector("#message textarea")?.value ?? "");
  });

  // A server that is gone cannot say so. When it is back, the page begins anew with what was kept.
  const LOOK_EVERY = 3000; // milliseconds
  let lost = null;
  const notice = (id, text) => {
    const told = Object.assign(document.createElement("p"), { id, className: "notice error away" });
    told.setAttribute("role", "alert");
    told.textContent = text;
    document.body.append(told);
    return told;
  };
  const look = async () => {
    if (document.hidden) return;
    let there = false;
    try {
      there = (await ask.call(window, "/favicon.ico", { cache: "no-store" })).ok;
    } catch {}
    if (there && lost) {
      location.reload();
    } else if (!there && !lost) {
      lost = notice("lost", word("away"));
    }
  };
  setInterval(look, LOOK_EVERY);

  // What the gate finds too large never reaches the page's own words; Gradio says nothing of it.
  const ask = window.fetch;
  window.fetch = async (...given) => {
    document.querySelector("#large")?.remove();
    const reply = await ask.apply(window, given);
    if (reply.status === 413) notice("large", word("too_large"));
    return reply;
  };

  // What Gradio names in English only, for those who listen; and what it names by a word of ours.
  const NAMES = {
    "chatbot conversation": "conversation", "Copy message": "copy", "Copied message": "copied",
    "user's message:": "you_wrote", "bot's message:": "model_wrote",
  };
  const named = (text) => {
    const found = Object.keys(NAMES).find((name) => text?.startsWith(name));
    return found && word(NAMES[found]) + text.slice(found.length);
  };
  new MutationObserver(() => {
    for (const one of document.querySelectorAll("#chat [aria-label], #chat [title]")) {
      for (const name of ["aria-label", "title"]) {
        const text = named(one.getAttribute(name));
        if (text) one.setAttribute(name, text);
      }
    }
  }).observe(document, { childList: true, subtree: true, attributeFilter: ["aria-label", "title"] });

  let ready = false; // components report their first, empty values before anything is restored

  return {
    // `now` are the components that `restore` fills, in page.py's order, as they are at first.
    restore([, , , , ...defaults]) {
      let chat = read(sessionStorage, "chat", null) ?? read(localStorage, "chat", []);
      if (!Array.isArray(chat) || chat.some((one) => !Array.isArray(one?.content))) chat = [];
      let settings = read(localStorage, "settings", defaults);
      const fits = (one, i) => typeof settings[i] === typeof one; // or another version kept them
      if (settings.length !== defaults.length || !defaults.every(fits)) settings = defaults;
      const here = (name) => read(sessionStorage, name, "");
      return [language, here("key"), here("draft"), chat, ...settings];
    },
    ready() {
      ready = true;
      document.body.classList.add("ready");
      showSettings(read(localStorage, "panel", true) && innerWidth >= WIDE);
    },
    keepChat(chat) {
      if (!ready) return;
      write(sessionStorage, "chat", chat); // this tab's, over a reload
      write(localStorage, "chat", chat); // for the next tab
    },
    keepSettings(settings) {
      if (!ready) return;
      write(localStorage, "settings", settings);
    },
    keepKey(key) {
      write(sessionStorage, "key", key);
    },
    toggleSettings() {
      const shown = !document.body.classList.contains("settings");
      if (innerWidth >= WIDE) write(localStorage, "panel", shown);
      showSettings(shown);
    },
    turnTo(tab) {
      document.body.classList.toggle("on-run", tab === "run");
    },
    speakOther() {
      write(localStorage, "language", language === "en" ? "zh" : "en");
      location.reload();
    },
    focus() {
      document.querySelector("#message textarea")?.focus();
    },
    word,
  };
})();
