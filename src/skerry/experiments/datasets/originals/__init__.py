"""From public originals to the arrays that recipes read: archives and packages, and what is in them."""
