"""How fast is it? Our transfer measured against the others of this field, as processes of their own."""
