// Drives SillyTavern's page as its user does, and prints what was seen as JSON. The tests are test_sillytavern*.py.
//
//   node sillytavern.mjs '{"tavern": URL, "key": KEY, "user": NAME, "character": NAME, "card": FILE, "types": [TYPE, ...],
//                          "turns": [{"server": URL, "preset": FILE or NAME, "say": TEXT}, ...], "pictures": FOLDER}'

import { chromium } from "playwright-core";

const asked = JSON.parse(process.argv[2]);
const WAIT_MS = 120_000;

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  // As root, without a GPU, and without the calls home that Chromium makes at its start.
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
try {
  const page = await browser.newPage({ viewport: { width: 900, height: 560 } });
  page.setDefaultTimeout(WAIT_MS);
  await arrive(page);
  await loadCharacter(page);
  const turns = [];
  for (const [number, { server, preset, say }] of asked.turns.entries()) {
    const status = await connect(page, server, `connection-${number}.png`);
    await choosePreset(page, preset);
    turns.push({ status, ...(await chat(page, say)) });
    await picture(page, `chat-${number}.png`);
  }
  const bodies = await page.evaluate(bodiesOf, asked.types);
  process.stdout.write(JSON.stringify({ turns, bodies, error: await errorShown(page) }));
} finally {
  await browser.close();
}

/** The first visit asks for a name. */
async function arrive(page) {
  await page.goto(asked.tavern);
  await page.fill("dialog[open] .popup-input", asked.user);
  await page.click("dialog[open] .popup-button-ok");
  await page.waitForSelector("dialog[open]", { state: "detached" });
}

/** Open or close a drawer. It takes no click while it moves. */
async function toggle(page, drawer) {
  await page.click(`${drawer} .drawer-toggle`);
  await page.waitForSelector(`${drawer} .drawer-content:not(.resizing)`, { state: "attached" });
}

/** A character from its card, and the chat that its greeting begins. */
async function loadCharacter(page) {
  await toggle(page, "#rightNavHolder");
  await page.setInputFiles("#character_import_file", asked.card);
  await page.click(`#rm_print_characters_block .character_select:has-text("${asked.character}")`);
  await page.waitForSelector(`#chat .mes.last_mes[ch_name="${asked.character}"]`);
  await toggle(page, "#rightNavHolder");
}

/** What the page says of the connection once there is one. */
async function connect(page, server, pictured) {
  await toggle(page, "#sys-settings-button");
  await page.selectOption("#main_api", "textgenerationwebui");
  await page.selectOption("#textgen_type", "ooba");
  await page.fill("#api_key_ooba", asked.key);
  await page.fill("#textgenerationwebui_api_url_text", server);
  const answer = page.waitForResponse("**/api/backends/text-completions/status");
  await page.click("#api_button_textgenerationwebui");
  await answer;
  await page.waitForSelector("#textgenerationwebui_api .online_status_indicator.success");
  const status = await page.textContent("#textgenerationwebui_api .online_status_text");
  await picture(page, pictured);
  await toggle(page, "#sys-settings-button");
  return status.trim();
}

/** All sections of a file, which selects them; or what SillyTavern ships under a name. */
async function choosePreset(page, preset) {
  await toggle(page, "#advanced-formatting-button");
  if (preset.endsWith(".json")) {
    await page.setInputFiles("#af_master_import_file", preset);
    await page.click("dialog[open] .popup-button-ok");
    await page.waitForSelector("dialog[open]", { state: "detached" });
  } else {
    for (const list of ["#context_presets", "#instruct_presets"]) await page.selectOption(list, { label: preset });
  }
  for (const name of ["instruct_enabled", "sysprompt_enabled"])
    if (!(await page.isChecked(`#${name}`))) await page.click(`label[for=${name}]`);
  await toggle(page, "#advanced-formatting-button");
}

/** One turn: what the page sent, the answer as it was seen to grow, and as it is kept. */
async function chat(page, text) {
  await page.evaluate(() => {
    const grown = (window.grown = []);
    const note = () => {
      const text = document.querySelector("#chat .mes.last_mes[is_user=false] .mes_text")?.innerText;
      if (text && text !== grown.at(-1)) grown.push(text);
    };
    const everything = { subtree: true, childList: true, characterData: true };
    new MutationObserver(note).observe(document.querySelector("#chat"), everything);
  });
  const sent = await send(page, text);
  await page.waitForFunction(() => !document.body.dataset.generating);
  const answer = await page.evaluate(() => SillyTavern.getContext().chat.at(-1).mes);
  return { sent, grown: await page.evaluate(() => window.grown), answer };
}

async function send(page, text) {
  const request = page.waitForRequest("**/api/backends/text-completions/generate");
  await page.fill("#send_textarea", text);
  await page.click("#send_but");
  return (await request).postDataJSON();
}

async function picture(page, name) {
  await page.waitForSelector(".toast", { state: "detached" });
  await page.screenshot({ path: `${asked.pictures}/${name}` });
}

/** What the page would send with its present settings, were it connected as each of the types. Runs in the page. */
async function bodiesOf(types) {
  const { textgenerationwebui_settings: settings, getTextGenGenerationData } = await import(
    "/scripts/textgen-settings.js"
  );
  const bodies = {};
  const { type: connected, custom_model: model } = settings;
  for (const type of types) {
    settings.type = type;
    settings[`${type}_model`] = model;
    bodies[type] = await getTextGenGenerationData("", 40, false, false, null, "normal");
  }
  settings.type = connected;
  return JSON.parse(JSON.stringify(bodies)); // without what is undefined, as it is sent
}

/** What the page says when the model that it asks for is not there. */
async function errorShown(page) {
  await toggle(page, "#sys-settings-button");
  await page.fill("#custom_model_textgenerationwebui", "no-such-model");
  await toggle(page, "#sys-settings-button");
  await send(page, "Who else is here?");
  return page.textContent(".toast-error .toast-message");
}
