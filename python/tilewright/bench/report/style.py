"""How the page looks, and what it does beside: sorting and filtering, for which it needs JavaScript."""

from __future__ import annotations

from .view import OURS_COLOR, PEER_COLORS, SLOWER_COLOR


def css() -> str:
    colors = (("ours", OURS_COLOR), ("slower", SLOWER_COLOR), *((f"p{i}", c) for i, c in enumerate(PEER_COLORS)))
    light, dark = ("".join(f"--{n}:{c[i]};" for n, c in colors) for i in (0, 1))
    peers = "".join(f".p{i}{{fill:var(--p{i});stroke:var(--p{i})}}" for i in range(len(PEER_COLORS)))
    scheme = f":root{{{_LIGHT}{light}}}@media (prefers-color-scheme:dark){{:root{{{_DARK}{dark}}}}}"
    printed = f"@media print{{:root{{{_LIGHT}{light}}}}}"
    return scheme + printed + peers + _RULES


_LIGHT = "color-scheme:light dark;--back:#fff;--text:#1c1e21;--soft:#5c636b;--line:#dfe2e6;--wash:#f5f6f8;"
_DARK = "--back:#15171a;--text:#e6e8eb;--soft:#a0a7b0;--line:#33383e;--wash:#1d2024;"

_RULES = """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:1240px;padding:28px 28px 64px;background:var(--back);color:var(--text);
 font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;letter-spacing:-.01em;text-wrap:balance}
h2{font-size:20px;margin:52px 0 4px;letter-spacing:-.01em}
h3{font-size:15px;margin:28px 0 4px}
p{margin:4px 0 12px;max-width:76ch}
a{color:var(--ours)}
.soft,.meta{color:var(--soft)}
.small,.tick,table .meta{font-size:12.5px}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:14px 0 0}
nav a{text-decoration:none}
nav a:hover{text-decoration:underline}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--wash);border:1px solid var(--line);border-radius:6px;padding:10px 14px;overflow-x:auto;
 margin:6px 0}
.banner{background:var(--wash);border-left:4px solid var(--slower);border-radius:0 6px 6px 0;padding:10px 16px;
 margin:18px 0 0}
.banner p,.banner ul{margin:0;max-width:none}
.banner ul{padding-left:20px}
.glance{display:grid;grid-template-columns:repeat(4,1fr);margin:26px 0 10px;border-top:2px solid var(--text);
 border-bottom:1px solid var(--line)}
.glance>div{padding:14px 18px 16px;border-left:1px solid var(--line)}
.glance>div:first-child{padding-left:0;border-left:0}
.glance h2{font-size:13px;font-weight:600;margin:0;color:var(--soft);letter-spacing:0}
.glance .big{font-size:36px;line-height:1.2;font-weight:650;letter-spacing:-.02em;margin:2px 0 4px}
.glance p{margin:0 0 4px;font-size:13.5px;line-height:1.42}
.counts{display:flex;height:9px;margin:8px 0 6px;gap:2px}
.counts i{display:block;min-width:3px}
i.faster,.fill{background:var(--ours);fill:var(--ours)}
i.slower{background:var(--slower)}
i.even{background:var(--soft)}
.faster-text{color:var(--ours);fill:var(--ours)}
.slower-text{color:var(--slower);fill:var(--slower)}
.faster-text,.slower-text{font-weight:600}
figure{margin:14px 0 0}
figcaption{color:var(--soft);font-size:13px;max-width:90ch}
svg{display:block}
svg text{fill:var(--text);font-size:13px;font-family:inherit}
svg text.tick{fill:var(--soft);font-size:11px}
svg text.slower-text{fill:var(--slower)}
svg text.faster-text{fill:var(--ours)}
svg.wide,svg.growth{max-width:100%;height:auto}
svg.wide{min-width:720px}
svg .faster{fill:var(--ours)}svg .slower{fill:var(--slower)}
svg .even{fill:var(--back);stroke:var(--soft);stroke-width:1.6}
svg a:hover *{stroke:var(--text);stroke-width:2}
.one{stroke:var(--text);stroke-width:1}
.grid{stroke:var(--line)}
.axis{stroke:var(--soft)}
.limit{stroke:var(--soft);stroke-width:3}
.track{fill:var(--line)}
.ours{fill:var(--ours);stroke:var(--ours)}
.second{fill:var(--back);stroke-width:2}
.bar{stroke-width:5}
.span{stroke-width:1.3;opacity:.75}
.curve{fill:none;stroke-width:1.4}
.ours.curve{stroke-width:2.6}
.second.curve{stroke-dasharray:6 3}
.guide{fill:none;stroke:var(--soft);stroke-width:.8;stroke-dasharray:2 3}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;padding:0;margin:8px 0;font-size:13px}
.legend li{display:flex;align-items:center;gap:5px}
.mark{display:inline-block;width:3px;height:13px;background:var(--soft);margin:0 5px}
.mark.one{width:1px;background:var(--text)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;margin:8px 0}
th,td{text-align:left;vertical-align:top;padding:6px 10px 6px 0}
thead th{font-size:12.5px;font-weight:600;color:var(--soft);border-bottom:1px solid var(--text);vertical-align:bottom}
th button{all:unset;cursor:pointer}
th button:hover,th button:focus-visible{text-decoration:underline;color:var(--text)}
th[aria-sort] button::after{content:" ↓"}th[aria-sort=ascending] button::after{content:" ↑"}
.number{text-align:right}
tbody th{font-weight:600}
.calls .first>th{min-width:204px}
thead svg{font-weight:400}
.plain tbody tr,.calls>tbody,.inner tbody tr{border-bottom:1px solid var(--line)}
.calls>tbody:target{background:var(--wash)}
.calls .first>*{padding-bottom:0;line-height:1.35}
.calls .first td{white-space:nowrap}
.calls .field{padding-right:20px}
.calls .more>td{padding-top:2px;padding-bottom:7px}
.calls td .meta{display:block}
summary{cursor:pointer;color:var(--soft);font-size:12.5px;width:max-content;max-width:100%}
summary:hover{color:var(--text)}
details[open]>summary{margin-bottom:6px}
.inner{background:var(--wash);font-size:13px;margin:0 0 8px}
.inner th:first-child{padding-left:10px}
.inner th{font-weight:500;white-space:nowrap}
.inner svg{display:inline-block;vertical-align:-2px;margin-right:5px}
.inner .ourrow th{font-weight:700;color:var(--ours)}
.inner td.reason{white-space:normal;overflow-wrap:anywhere}
.status{font-weight:600}
.tools{display:flex;flex-wrap:wrap;gap:8px 12px;align-items:center;margin:16px 0 0;font-size:13px}
.tools input,.tools select,.tools button{font:inherit;color:inherit;background:var(--back);border:1px solid var(--line);
 border-radius:5px;padding:4px 9px}
.pair{display:flex;flex-wrap:wrap;gap:8px 24px}
.pair>div{flex:1 1 340px;max-width:460px}
.pair h4{margin:8px 0 2px;font-size:13px;font-weight:600;color:var(--soft)}
dl{display:grid;grid-template-columns:minmax(120px,max-content) 1fr;gap:3px 22px;margin:8px 0;font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
[hidden]{display:none!important}
@media screen and (max-width:1000px){.glance{grid-template-columns:1fr 1fr}
 .glance>div:nth-child(odd){padding-left:0;border-left:0}
 .glance>div:nth-child(n+3){border-top:1px solid var(--line)}}
@media screen and (max-width:820px){
 body{padding:18px 14px 48px}h1{font-size:22px}
 .calls thead{display:none}
 .calls,.calls>tbody,.calls .more,.calls .more>td{display:block}
 .calls .first{display:grid;grid-template-columns:1fr 1fr;gap:4px 14px;padding-top:10px}
 .calls .first>*{padding:0;display:block;text-align:left}
 .calls .first>th,.calls .first>.field,.calls .first>.verdict{grid-column:1/-1}
 .calls .first>td[data-name]::before{content:attr(data-name);display:block;color:var(--soft);font-size:12px}
 .calls .more>td{padding-top:6px}
}
@media screen and (max-width:480px){.glance{grid-template-columns:1fr}.glance>div{padding-left:0;border-left:0;
 border-top:1px solid var(--line)}.glance>div:first-child{border-top:0}dl{grid-template-columns:1fr;gap:0}
 dd{margin-bottom:8px}}
@media print{
 @page{size:landscape;margin:12mm}
 body{max-width:none;padding:0;font-size:9.5pt}.tools,nav{display:none}
 table{font-size:9pt}table .meta,summary,.inner{font-size:8pt}.calls td,.calls th{padding-right:7px}
 .calls .first>th{min-width:0}svg.strip{width:130px;height:auto}
 .calls>tbody,.pair,figure,.glance{break-inside:avoid}h2,h3{break-after:avoid}
 *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""

SCRIPT = """
(() => {
  const bodies = [...document.querySelectorAll('.calls > tbody')];
  const tools = document.querySelector('.tools');
  if (!tools || !bodies.length) return;
  const [text, which, all] = tools.querySelectorAll('input, select, button');
  const shown = tools.querySelector('output');
  const filter = () => {
    const words = text.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let count = 0;
    for (const b of bodies) {
      const found = b.textContent.toLowerCase();
      const fits = (!which.value || b.dataset.verdict === which.value) && words.every(w => found.includes(w));
      b.hidden = !fits;
      count += fits;
    }
    for (const s of document.querySelectorAll('section.op'))
      s.hidden = ![...s.querySelectorAll('.calls > tbody')].some(b => !b.hidden);
    shown.textContent = count === bodies.length ? `${count} calls` : `${count} of ${bodies.length} calls`;
  };
  text.addEventListener('input', filter);
  which.addEventListener('change', filter);
  all.addEventListener('click', () => {
    const open = all.textContent.startsWith('Open');
    for (const d of document.querySelectorAll('.calls details')) d.open = open;
    all.textContent = open ? 'Close all' : 'Open all';
  });
  tools.hidden = false;
  filter();
  // A link to a call that the filter hides shows it again.
  addEventListener('hashchange', () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.closest('[hidden]')) { text.value = which.value = ''; filter(); target.scrollIntoView(); }
  });
  for (const head of document.querySelectorAll('.calls thead th[data-key]')) {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.title = 'sort';
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') === 'descending';
      for (const h of head.parentNode.children) h.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const table = head.closest('table'), key = head.dataset.key;
      const value = b => b.dataset[key] ?? '';
      const order = (a, b) => {
        if (value(a) === '' || value(b) === '') return (value(a) === '') - (value(b) === '');
        const n = value(a) - value(b);
        return (up ? 1 : -1) * (Number.isNaN(n) ? value(a).localeCompare(value(b)) : n);
      };
      [...table.tBodies].sort(order).forEach(b => table.append(b));
    });
  }
})();
"""
