/* PyConfig.pymalloc_hugepages: reading the switch.

   Included by initconfig.c alone, for its config_get_env() and
   config_get_xoption(). */

static const struct {
    const wchar_t *name;
    PyMalloc_HugePages value;
} pymalloc_hugepages_names[] = {
    {L"", PYMALLOC_HUGEPAGES_ON},           // a bare -X pymalloc_hugepages
    {L"1", PYMALLOC_HUGEPAGES_ON},
    {L"on", PYMALLOC_HUGEPAGES_ON},
    {L"thp", PYMALLOC_HUGEPAGES_THP},
    {L"hugetlb", PYMALLOC_HUGEPAGES_HUGETLB},
    {L"0", PYMALLOC_HUGEPAGES_OFF},
    {L"off", PYMALLOC_HUGEPAGES_OFF},
};

/* Return the value of that name, or PYMALLOC_HUGEPAGES_UNSET if there is no
   such name. */
static int
pymalloc_hugepages_from_name(const wchar_t *name)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(pymalloc_hugepages_names); i++) {
        if (wcscmp(name, pymalloc_hugepages_names[i].name) == 0) {
            return pymalloc_hugepages_names[i].value;
        }
    }
    return PYMALLOC_HUGEPAGES_UNSET;
}

/* The wheel for stock interpreters, which takes the names from here, has no
   PyConfig. */
#ifndef Py_LIMITED_API

/* Fill config->pymalloc_hugepages if it is not set: from -X
   pymalloc_hugepages, else from PYTHON_PYMALLOC_HUGEPAGES, else with the
   default.  Reject a value that is none. */
static PyStatus
config_init_pymalloc_hugepages(PyConfig *config)
{
    if (config->pymalloc_hugepages < PYMALLOC_HUGEPAGES_UNSET
        || config->pymalloc_hugepages > PYMALLOC_HUGEPAGES_HUGETLB)
    {
        return _PyStatus_ERR("PyConfig.pymalloc_hugepages is not a "
                             "PyMalloc_HugePages value");
    }
    if (config->pymalloc_hugepages != PYMALLOC_HUGEPAGES_UNSET) {
        return _PyStatus_OK();
    }

    const wchar_t *value = config_get_xoption_value(config,
                                                    L"pymalloc_hugepages");
    if (value != NULL) {
        config->pymalloc_hugepages = pymalloc_hugepages_from_name(value);
        if (config->pymalloc_hugepages == PYMALLOC_HUGEPAGES_UNSET) {
            return _PyStatus_ERR("-X pymalloc_hugepages: unknown value; use "
                                 "on, 1, thp, hugetlb, off or 0");
        }
        return _PyStatus_OK();
    }

    wchar_t *env = NULL;
    PyStatus status = CONFIG_GET_ENV_DUP(config, &env,
                                         L"PYTHON_PYMALLOC_HUGEPAGES",
                                         "PYTHON_PYMALLOC_HUGEPAGES");
    if (_PyStatus_EXCEPTION(status)) {
        return status;
    }
    config->pymalloc_hugepages = PYMALLOC_HUGEPAGES_ON;
    if (env != NULL) {
        config->pymalloc_hugepages = pymalloc_hugepages_from_name(env);
        PyMem_RawFree(env);
    }
    if (config->pymalloc_hugepages == PYMALLOC_HUGEPAGES_UNSET) {
        return _PyStatus_ERR("PYTHON_PYMALLOC_HUGEPAGES: unknown value; use "
                             "on, 1, thp, hugetlb, off or 0");
    }
    return _PyStatus_OK();
}

#endif  // !Py_LIMITED_API
