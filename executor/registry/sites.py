"""Domains below which anyone can get a name: the common entries of the Public Suffix List.

Whoever registers ``evil.co.uk``, or is a customer of ``fly.dev``, has a name beside a registry's. So hosts below such a
domain have nothing to do with each other.
"""

from __future__ import annotations

from typing import Final

_SECOND_LEVEL_TEXT: Final = """
ac adm adv art asn asso biz club cn co com coop csiro ed edu ernet firm fin fm g12 gc gen gob gok gon gop gos gouv gov
govt gr gub health id idf idn idv in ind info int iwi k12 kiwi law lg ltd maori me med mi mil mod mus museum muni my
name ne net nhs nic nom nt nym oop or org other parliament plc pol police press pri pro pub re rec res sch school sci
shop sld store tel tm tur tv us web www
"""
_SECOND_LEVEL: Final = frozenset(_SECOND_LEVEL_TEXT.split())
"""Second-level domains that are registries of names in many countries."""
_WILD: Final = frozenset(("bd", "ck", "er", "fj", "fk", "jm", "kh", "kw", "mm", "np", "pg"))
"""Countries whose whole second level is a registry of names."""
_HOSTERS_TEXT: Final = """
amazonaws.com app.github.dev appdomain.cloud appspot.com awsapprunner.com azure-api.net azurecontainerapps.io azurecr.io
azurefd.net azurewebsites.net bitbucket.io br.com cleverapps.io cloudapp.azure.com cloudapp.net cloudflare.net
cloudfront.net cloudfunctions.net cn.com co.com codesandbox.io csb.app ddns.net de.com deno.dev digitaloceanspaces.com
duckdns.org dyndns.org dynv6.net elasticbeanstalk.com eu.com eu.org firebaseapp.com fly.dev gb.net github.io gitlab.io
gitpod.io glitch.me googleusercontent.com herokuapp.com hf.space hopto.org jfrog.io jpn.com koyeb.app linodeobjects.com
loca.lt mooo.com netlify.app ngrok-free.app ngrok.app ngrok.dev ngrok.io nip.io no-ip.com no-ip.org now.sh on.aws
ondigitalocean.app onrender.com oraclecloud.com ovh.net pages.dev r2.dev railway.app repl.co replit.dev ru.com run.app
sa.com scw.cloud se.net serveo.net sslip.io stackblitz.io surge.sh sytes.net tencentcr.com trycloudflare.com ts.net
uk.com us.com vercel.app vultrcr.com web.app windows.net workers.dev za.com zapto.org zeabur.app
"""
_HOSTERS: Final = frozenset(_HOSTERS_TEXT.split())
"""Domains below which customers have names of their own."""


def hands_out_names(domain: str) -> bool:
    """Whether anyone can get a name below ``domain``."""
    labels = domain.lower().rstrip(".").split(".")
    if len(labels) < 2:
        return True
    if any(".".join(labels[at:]) in _HOSTERS for at in range(len(labels) - 1)):
        return True
    if len(labels) == 2 and len(labels[1]) == 2:
        return labels[0] in _SECOND_LEVEL or labels[1] in _WILD
    return False
