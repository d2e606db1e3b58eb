"""The style of the report page, in light and dark. Contrasts are at least 4.5:1 for text."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2230;--soft:#566074;--line:#d9dee7;--link:#1f5fbf;
--ran:#2f6fd0;--cached:#8b95a7;--failed:#c8322b;--moved:#0f8a7e;--built:#1d7a3e;--warned:#a15c00;--mark:#fff1c9}
@media (prefers-color-scheme:dark){:root{--page:#12161d;--card:#1a202a;--ink:#e4e8ef;--soft:#a3adbf;--line:#333d4d;
--link:#8ab8ff;--ran:#6ea4f5;--cached:#7d889c;--failed:#ff8a80;--moved:#4cc9b9;--built:#6fd08c;--warned:#f0b458;
--mark:#473a14}}
*{box-sizing:border-box}html{scroll-behavior:smooth;scroll-padding-top:1rem}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:78rem;margin:0 auto;padding:0 1.25rem}header{padding-top:1.5rem}
.brand{margin:0;color:var(--soft);font-size:.85rem;letter-spacing:.08em;text-transform:uppercase}
h1{margin:.1rem 0 .3rem;font-size:1.6rem;line-height:1.25;overflow-wrap:anywhere}h2{margin:0 0 .8rem;font-size:1.2rem}
h3{margin:0;font-size:1rem;display:inline;overflow-wrap:anywhere}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.25rem;margin:0 0 1.1rem}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;list-style:none;margin:.8rem 0 1.2rem;padding:0}
a{color:var(--link)}:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:3px}
.skip{position:absolute;left:-999px}
.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem 1rem;z-index:1}
code,pre{font:.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere}
small{color:var(--soft);font-size:.85em;font-weight:400}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.7rem;margin:0 0 1rem}
.tiles div{border:1px solid var(--line);border-radius:8px;padding:.5rem .8rem}dt{color:var(--soft);font-size:.85rem}
dd{margin:0;font-size:1.25rem;font-weight:600}
.scroll{overflow-x:auto;margin:.4rem 0 1rem}
table{border-collapse:collapse;width:100%}caption{text-align:left;color:var(--soft);padding:.2rem 0;font-size:.9rem}
th,td{text-align:left;padding:.28rem .7rem .28rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{color:var(--soft);font-weight:500;font-size:.85rem;white-space:nowrap}tbody th{font-weight:500}
td{white-space:nowrap}td:last-child{white-space:normal}
.timed tbody th{width:38%;min-width:16rem}.timed td:nth-child(4){width:30%;min-width:9rem}
.timed td:nth-child(5){min-width:9rem;color:var(--soft)}.timed td{font-variant-numeric:tabular-nums}
.sized tbody th{width:3rem}.sized td:nth-child(3){width:40%;min-width:8rem}td code{white-space:nowrap}
details caption{clip-path:inset(50%);height:1px;overflow:hidden;position:absolute;white-space:nowrap;width:1px}
.inner{padding-left:1.4rem;display:inline-block;font-weight:400}
.bar{display:block;width:100%;min-width:8rem;height:.8rem;margin-top:.35rem;background:var(--page);border-radius:3px}
rect.ran,rect.running{fill:var(--ran)}rect.cached,rect.stopped,rect.cancelled,rect.waiting{fill:var(--cached)}
rect.failed{fill:var(--failed)}rect.moved,rect.base{fill:var(--moved)}rect.built{fill:var(--built)}
.tag{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 .55em;font-size:.8rem;
font-weight:500;white-space:nowrap;color:var(--soft)}
.tag.ran{color:var(--ran)}.tag.failed{color:var(--failed)}.tag.built{color:var(--built)}
details{margin:.25rem 0}summary{cursor:pointer;padding:.2rem 0}
.problem{border-left:4px solid var(--warned);padding:.1rem 0 .1rem .9rem;margin:0 0 1rem}
.problem.failed{border-color:var(--failed)}.problem p{margin:.3rem 0}
figure{margin:.4rem 0}pre{background:var(--page);border:1px solid var(--line);border-radius:6px;margin:.2rem 0;
padding:.5rem .7rem;overflow:auto;max-height:26rem}pre b{color:var(--soft);font-weight:400}
mark{background:var(--mark);color:inherit;display:inline-block;min-width:100%}
.tree,.tree ul{list-style:none;margin:.2rem 0;padding-left:1.1rem;border-left:1px solid var(--line)}
.tree{padding-left:0;border:0}.tree li{margin:.2rem 0}.tree details{display:inline-block;vertical-align:top;margin:0}
.graph{display:block}.graph .box{fill:var(--page);stroke:var(--soft)}.graph .last{stroke:var(--built);stroke-width:2}
.graph text{fill:var(--ink);font-size:13px}.graph .edge{fill:none;stroke:var(--soft);stroke-width:1.5}
@media (max-width:40rem){header,main{padding-left:.8rem;padding-right:.8rem}section{padding:.9rem .8rem}
.timed tbody th{min-width:12rem}}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{body{background:#fff}section{break-inside:auto;border:0}.scroll{overflow:visible}nav{display:none}}
"""
